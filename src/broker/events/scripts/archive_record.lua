-- Record how far a stream is durably archived, on behalf of the archive lease's owner.
--
-- KEYS  1 meta, 2 lease, 3 archive
-- ARGV  1 incarnation, 2 owner, 3 epoch, 4 position, 5 events up to it, 6 number of its segment, 7 the segment's SHA-256
local refused = check_incarnation()
if refused then return refused end
local lost = check_lease(KEYS[2], ARGV[2], ARGV[3])
if lost then return lost end

redis.call('HSET', KEYS[3], 'position', ARGV[4], 'events', ARGV[5], 'segment', ARGV[6], 'sha256', ARGV[7],
  'epoch', ARGV[3])
return 1
