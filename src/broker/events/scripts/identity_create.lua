-- Decide the identity of a log that has none. Of any number of callers the first decides; all get its decision.
--
-- KEYS  1 control's meta
-- ARGV  1 the identity proposed (JSON)
-- Reply the identity decided (JSON)
local decided = redis.call('HGET', KEYS[1], 'identity')
if decided then return decided end
if redis.call('HEXISTS', KEYS[1], 'incarnation') == 1 then
  return redis.error_reply('REFUSED control has an incarnation but no identity')
end
redis.call('HSET', KEYS[1], 'identity', ARGV[1])
return ARGV[1]
