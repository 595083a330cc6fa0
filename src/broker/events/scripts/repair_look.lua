-- What is left of a stream, refused or not.
--
-- KEYS  1 meta, 2 events
-- ARGV  1 position, 2 how many entries after it at most
-- Reply {milliseconds by the server's clock, meta (flat), first id or '', last id, entries ever added, length, entries}
local meta = redis.call('HGETALL', KEYS[1])
if redis.call('EXISTS', KEYS[2]) == 0 then return {int(now_ms()), meta, '', '0-0', 0, 0, {}} end
local info = redis.call('XINFO', 'STREAM', KEYS[2])
local first = field(info, 'first-entry')
local found = {}
if ARGV[2] ~= '0' then found = redis.call('XRANGE', KEYS[2], '(' .. ARGV[1], '+', 'COUNT', ARGV[2]) end
return {int(now_ms()), meta, first and first[1] or '', field(info, 'last-generated-id'), field(info, 'entries-added'),
  field(info, 'length'), found}
