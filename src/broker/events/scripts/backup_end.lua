-- Where a stream ends now, and what is open there.
--
-- KEYS  1 meta, 2 events, of a partition also 3 open
-- ARGV  1 incarnation
-- Reply {id of the last entry ('' where none is left or ever was), the last id given, entries ever added, open messages
--       (-1: no partition)}
local refused = check_incarnation()
if refused then return refused end

local open = KEYS[3] and redis.call('HLEN', KEYS[3]) or -1
if redis.call('EXISTS', KEYS[2]) == 0 then return {'', '0-0', 0, open} end
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
local info = redis.call('XINFO', 'STREAM', KEYS[2])
return {last and last[1] or '', field(info, 'last-generated-id'), field(info, 'entries-added'), open}
