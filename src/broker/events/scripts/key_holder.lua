-- Say which master keys a process has loaded, or that it goes away; forget those that said nothing for long.
--
-- KEYS  1 meta, 2 key holders
-- ARGV  1 incarnation, 2 process, 3 for how long this counts (ms; 0: it goes away), 4 ids of its master keys
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
end
return 'ok'
