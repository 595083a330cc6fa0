-- Keep everybody out of a stream for a repair, or let them in again when it gives up before it has changed anything.
--
-- KEYS  1 meta
-- ARGV  1 token, 2 why the stream is refused meanwhile ('': lift it), 3 when lifting: why it was refused before ('': it was not)
-- Reply the token of the repair before, whose leavings this one removes, '' where there was none; an error when another
--       has begun since.
local before = redis.call('HGET', KEYS[1], 'repair') or ''
if ARGV[2] == '' then
  if before ~= ARGV[1] then return redis.error_reply('LEASE another repair has begun') end
  redis.call('HDEL', KEYS[1], 'repair', 'refused')
  if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'refused', ARGV[3]) end
  return before
end
redis.call('HSET', KEYS[1], 'repair', ARGV[1], 'refused', ARGV[2])
return before
