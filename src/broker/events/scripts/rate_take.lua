-- Take tokens out of buckets (the generic cell rate algorithm: a bucket is the time at which it will be full again).
--
-- KEYS  1 meta, 2… a bucket each
-- ARGV  1 incarnation, then per bucket: microseconds in which one token comes, tokens that a full bucket holds, tokens
--       wanted, tokens owed (taken even if that leaves less than none)
-- Reply per bucket {tokens given, microseconds until it is full}.
local refused = check_incarnation()
if refused then return refused end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local reply = {}
for i = 2, #KEYS do
  local at = 2 + (i - 2) * 4
  local interval, burst = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  local wanted, owed = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local full = math.max(tonumber(redis.call('GET', KEYS[i]) or 0), now) + owed * interval
  local given = math.max(0, math.min(wanted, math.floor((now - full) / interval + burst + 0.001)))
  full = full + given * interval
  if given + owed > 0 then
    redis.call('SET', KEYS[i], int(full), 'PX', math.ceil((full - now) / 1000) + 1)
  end
  reply[i - 1] = {given, int(full - now)}
end
return reply
