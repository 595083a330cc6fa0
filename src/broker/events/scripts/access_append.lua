-- Append events to the access stream, once however often the call is repeated.
--
-- KEYS  1 meta, 2 events, 3 batch
-- ARGV  1 incarnation, 2 batch record's expiry (ms), 3 number of events, then per event: tag, subject, envelope, data
-- Reply the positions, in order.
local refused = check_incarnation()
if refused then return refused end

local before = redis.call('GET', KEYS[3])
if before then return cmsgpack.unpack(before) end

local reply = {}
for i = 1, tonumber(ARGV[3]) do
  local at = 4 * i
  reply[i] =
    redis.call('XADD', KEYS[2], '*', 't', ARGV[at], 's', ARGV[at + 1], 'm', ARGV[at + 2], 'd', ARGV[at + 3])
end
redis.call('SET', KEYS[3], cmsgpack.pack(reply), 'PX', ARGV[2])
return reply
