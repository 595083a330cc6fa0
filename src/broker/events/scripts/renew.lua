-- Say that a consumer is alive and keep its claims from growing idle; never take a claim back from a new owner.
--
-- KEYS  1 meta, 2 events, 3 workers, 4 holds
-- ARGV  1 incarnation, 2 group, 3 consumer, 4 how long it counts as alive (ms), then per claim: entry id, delivery count
-- Reply the entry ids of claims that this consumer no longer holds; an error NOGROUP when the group was destroyed.
local refused = check_incarnation()
if refused then return refused end

local group, consumer = ARGV[2], ARGV[3]
redis.call('HSET', KEYS[3], consumer, int(now_ms() + tonumber(ARGV[4])) .. '|' .. ARGV[4])
local pending = redis.pcall('XPENDING', KEYS[2], group)
if pending.err then return pending end
local lost = {}
for i = 5, #ARGV, 2 do
  local held = claim_held(KEYS[2], group, KEYS[4], consumer, ARGV[i], ARGV[i + 1])
  if held == 'pending' then
    redis.call('XCLAIM', KEYS[2], group, consumer, 0, ARGV[i], 'IDLE', 0, 'JUSTID')
    redis.call('HDEL', KEYS[4], ARGV[i])
  elseif not held then
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
