-- Entries after a position, and whether the stream still begins where it began.
--
-- KEYS  1 meta, 2 events
-- ARGV  1 incarnation, 2 position, 3 how many at most
-- Reply {id of the first entry (0-0 while nothing was trimmed; the last id where nothing is left), entries trimmed,
--       entries}
local refused = check_incarnation()
if refused then return refused end

if redis.call('EXISTS', KEYS[2]) == 0 then return {'0-0', 0, {}} end
local info = redis.call('XINFO', 'STREAM', KEYS[2])
local trimmed = field(info, 'entries-added') - field(info, 'length')
local first = '0-0'
if trimmed > 0 then
  local entry = field(info, 'first-entry')
  first = entry and entry[1] or field(info, 'last-generated-id')
end
return {first, trimmed, redis.call('XRANGE', KEYS[2], '(' .. ARGV[2], '+', 'COUNT', ARGV[3])}
