-- Give the lease back, if it is still ours. The epoch stays, so that the next one is higher.
-- KEYS meta, lease. ARGV incarnation, owner, epoch. Returns 1 when it was ours.
local refused = check_incarnation()
if refused then return refused end

local lease = redis.call('HMGET', KEYS[2], 'owner', 'epoch')
if lease[1] ~= ARGV[2] or lease[2] ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[2], 'owner', '', 'expires', '0')
return 1
