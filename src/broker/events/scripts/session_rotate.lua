-- Exchange the current token of a session for the next, at most once; an older one ends the session.
--
-- KEYS  1 meta, 2 registry, 3 session
-- ARGV  1 incarnation, 2 hash of the token presented, 3 hash of the next, 4 how many tokens a session may have
-- Reply {`ok`, user id, mark, the user's registry entry or false}, {`reused`, user id} or {`unknown`}.
local refused = check_incarnation()
if refused then return refused end

local session = redis.call('HMGET', KEYS[3], 'user', 'mark', 'current', 'count')
local user = session[1]
if not user then return {'unknown'} end

-- The same call again, because its reply was lost, finds the next token in place.
if session[3] ~= ARGV[3] then
  if session[3] ~= ARGV[2] then
    -- Only a token that was once good proves that two hold it; anything else is a stranger's guess.
    if redis.call('HEXISTS', KEYS[3], 'old:' .. ARGV[2]) == 0 then return {'unknown'} end
    redis.call('DEL', KEYS[3])
    return {'reused', user}
  end
  if tonumber(session[4]) >= tonumber(ARGV[4]) then
    redis.call('DEL', KEYS[3])
    return {'unknown'}
  end
  redis.call('HSET', KEYS[3], 'old:' .. ARGV[2], '', 'current', ARGV[3])
  redis.call('HINCRBY', KEYS[3], 'count', 1)
end
return {'ok', user, session[2], redis.call('HGET', KEYS[2], 'user:' .. user)}
