-- Write the decided identity into one stream's meta; again changes nothing.
--
-- KEYS  1 meta, 2 events
-- ARGV  1 incarnation, 2 log id, 3 partitions
-- Reply `OK`; an error when the stream belongs to another log or holds entries of nobody's.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'log_id', 'partitions')
if meta[1] then
  if meta[1] == ARGV[1] and meta[2] == ARGV[2] and meta[3] == ARGV[3] then return redis.status_reply('OK') end
  return redis.error_reply('REFUSED a stream belongs to another log, ' .. (meta[2] or 'unknown'))
end
if redis.call('EXISTS', KEYS[2]) == 1 then
  return redis.error_reply('REFUSED a stream has entries but no incarnation')
end
redis.call('HSET', KEYS[1], 'incarnation', ARGV[1], 'log_id', ARGV[2], 'partitions', ARGV[3])
return redis.status_reply('OK')
