-- Whose session it is, and that user as of now.
--
-- KEYS  1 meta, 2 registry, 3 session
-- ARGV  1 incarnation
-- Reply {user id, mark, the user's registry entry or false}, empty when the session has ended.
local refused = check_incarnation()
if refused then return refused end

local session = redis.call('HMGET', KEYS[3], 'user', 'mark')
if not session[1] then return {} end
return {session[1], session[2], redis.call('HGET', KEYS[2], 'user:' .. session[1])}
