-- Make sure that the delivery group exists, just before the oldest open message, or at the tail when none is open.
--
-- KEYS  1 meta, 2 events, 3 open, 4 age
-- ARGV  1 incarnation, 2 group
-- Reply the id it was created at, '' if it existed.
local refused = check_incarnation()
if refused then return refused end

if redis.call('EXISTS', KEYS[2]) == 1 then
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[2])) do
    if field(info, 'name') == ARGV[2] then return '' end
  end
end
local from = '$'
local oldest = redis.call('ZRANGE', KEYS[4], 0, 0, 'WITHSCORES')
if oldest[2] then from = int(tonumber(oldest[2]) - 1) .. '-18446744073709551615' end
redis.call('XGROUP', 'CREATE', KEYS[2], ARGV[2], from, 'MKSTREAM')
return from
