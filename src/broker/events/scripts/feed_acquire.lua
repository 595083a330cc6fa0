-- Take the lease of a stream when it is free, expired or our own.
-- KEYS meta, lease. ARGV incarnation, owner, ttl (ms), epoch that the new one must be above.
-- Returns {epoch, 0}, or {0, ms until it may be free}.
local refused = check_incarnation()
if refused then return refused end

local now = now_ms()
local lease = redis.call('HMGET', KEYS[2], 'owner', 'epoch', 'expires', 'ttl')
local left = tonumber(lease[3] or '0') - now
-- More time left than was ever given: the server's clock went back, and the owner, if alive, is fenced.
local possible = left <= tonumber(lease[4] or '0')
if lease[1] and lease[1] ~= '' and lease[1] ~= ARGV[2] and left > 0 and possible then
  return {0, left}
end
local epoch = math.max(tonumber(lease[2] or '0'), tonumber(ARGV[4])) + 1
redis.call('HSET', KEYS[2], 'owner', ARGV[2], 'epoch', int(epoch),
  'expires', int(now + tonumber(ARGV[3])), 'ttl', ARGV[3])
return {epoch, 0}
