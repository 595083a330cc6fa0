-- Make sure that the delivery group exists, just before the oldest open message, or at the tail when none is open.
--
-- What living workers have in hand must not reach its recipient a second time through the new group: before it is made,
-- each of them has called and said what that is (`holds`), or its heartbeat has expired.
--
-- KEYS  1 meta, 2 events, 3 open, 4 age, 5 workers, 6 holds
-- ARGV  1 incarnation, 2 group, 3 consumer, 4 expiry of `holds` (ms), then per claim in hand: entry id, delivery count
-- Reply the id it was created at, '' if it existed, an error NOGROUP while a living worker has not called yet.
local refused = check_incarnation()
if refused then return refused end

if group_info(KEYS[2], ARGV[2]) then return '' end

local me, now = ARGV[3], now_ms()
for i = 5, #ARGV, 2 do redis.call('HSET', KEYS[6], ARGV[i], me .. '|' .. ARGV[i + 1]) end
redis.call('HSET', KEYS[6], 'w:' .. me, '1')
redis.call('PEXPIRE', KEYS[6], ARGV[4])
for _, name in ipairs(redis.call('HKEYS', KEYS[5])) do
  if redis.call('HEXISTS', KEYS[6], 'w:' .. name) == 0 and alive_until(KEYS[5], name, now) >= now then
    return redis.error_reply('NOGROUP it is made again when ' .. name .. ' has said what it has in hand')
  end
end
-- Also of those that have no heartbeat now: it counts for this time only.
for _, entry in ipairs(redis.call('HKEYS', KEYS[6])) do
  if string.sub(entry, 1, 2) == 'w:' then redis.call('HDEL', KEYS[6], entry) end
end

local from = '$'
local oldest = redis.call('ZRANGE', KEYS[4], 0, 0, 'WITHSCORES')
if oldest[2] then from = int(tonumber(oldest[2]) - 1) .. '-18446744073709551615' end
redis.call('XGROUP', 'CREATE', KEYS[2], ARGV[2], from, 'MKSTREAM')
return from
