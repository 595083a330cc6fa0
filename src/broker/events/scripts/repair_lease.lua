-- Take, keep or give back the lease of the one repair that may be under way.
--
-- KEYS  1 the lease
-- ARGV  1 token, 2 for how long (ms; 0: give it back)
-- Reply 1 when it is this repair's (or given back), 0 when it is another's.
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return 1
