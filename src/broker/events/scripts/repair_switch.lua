-- Put what a repair has made beside a stream in its place, all at once, under the stream's next incarnation.
--
-- KEYS  1 meta, 2 lease, 3 archive lease, 4 archive, then as many as ARGV 5 says that are removed, then pairs: made, its place
-- ARGV  1 token, 2 incarnation, 3 log id, 4 partitions, 5 how many keys are removed, 6 epoch that archive leases must be above,
--       7 number of further fields of meta, then those with their values, then fields of `archive` with theirs
-- What was made and does not exist leaves its place empty.
local token = redis.call('HGET', KEYS[1], 'repair')
if token ~= ARGV[1] then return redis.error_reply('LEASE another repair has begun') end

local at = 5
for _ = 1, tonumber(ARGV[5]) do
  redis.call('UNLINK', KEYS[at])
  at = at + 1
end
for i = at, #KEYS, 2 do
  if redis.call('EXISTS', KEYS[i]) == 1 then
    redis.call('RENAME', KEYS[i], KEYS[i + 1])
  else
    redis.call('UNLINK', KEYS[i + 1])
  end
end

-- Whoever held a lease knows another incarnation; epochs only grow.
for i = 2, 3 do
  local epoch = tonumber(redis.call('HGET', KEYS[i], 'epoch') or '0')
  if i == 3 then epoch = math.max(epoch, tonumber(ARGV[6])) end
  redis.call('HSET', KEYS[i], 'owner', '', 'expires', '0', 'epoch', int(epoch))
end

redis.call('DEL', KEYS[4])
local fields = 8 + 2 * tonumber(ARGV[7])
if #ARGV >= fields then redis.call('HSET', KEYS[4], unpack(ARGV, fields)) end
redis.call('HSET', KEYS[1], 'incarnation', ARGV[2], 'log_id', ARGV[3], 'partitions', ARGV[4])
if fields > 8 then redis.call('HSET', KEYS[1], unpack(ARGV, 8, fields - 1)) end
redis.call('HDEL', KEYS[1], 'refused', 'repair')
return 'OK'
