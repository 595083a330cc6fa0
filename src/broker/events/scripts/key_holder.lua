-- Say what a process knows: which master keys, which control events. Or that it goes away. Who said nothing for
-- long is forgotten.
--
-- KEYS  1 meta, 2 key holders, 3 followers
-- ARGV  1 incarnation, 2 process, 3 for how long this counts (ms; 0: it goes away), 4 ids of its master keys,
--       5 id of the last control event that it has applied (`` for none yet: only versions that do not say it
--       have no field there)
local refused = check_incarnation()
if refused then return refused end

local now = now_ms()
local said = redis.call('HGETALL', KEYS[2])
for i = 1, #said, 2 do
  if tonumber(string.match(said[i + 1], '^(%d+)|')) < now then redis.call('HDEL', KEYS[2], said[i]) end
end
if ARGV[3] == '0' then
  redis.call('HDEL', KEYS[2], ARGV[2])
else
  redis.call('HSET', KEYS[2], ARGV[2], int(now + ARGV[3]) .. '|' .. ARGV[4])
  redis.call('HSET', KEYS[3], ARGV[2], ARGV[5])
end
for _, process in ipairs(redis.call('HKEYS', KEYS[3])) do
  if redis.call('HEXISTS', KEYS[2], process) == 0 then redis.call('HDEL', KEYS[3], process) end
end
return 'ok'
