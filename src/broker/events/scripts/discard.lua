-- End the cycle of a parked message without its being delivered.
--
-- KEYS  1 meta, 2 events, 3 open, 4 age, 5 bodies, 6 the message's outcome hash
-- ARGV  1 incarnation, 2 message id, 3 cycle that the caller knows, 4 envelope, 5 tag, 6 reason, 7 time (ms),
--       8 how long outcomes are kept (ms)
-- Reply the stream id of the event, or 'missing' (nothing is parked), 'stale' (another cycle).
local refused = check_incarnation()
if refused then return refused end

local events, id = KEYS[2], ARGV[2]
local open = parse_open(redis.call('HGET', KEYS[3], id))
if not open or open.phase ~= 'p' then return 'missing' end
if open.cycle ~= tonumber(ARGV[3]) then return 'stale' end

local entry = redis.call('XADD', events, '*', 't', ARGV[5], 's', id, 'm', ARGV[4], 'd',
  cmsgpack.pack({open.client, open.cycle, open.attempt, ARGV[6]}))
redis.call('HDEL', KEYS[3], id)
redis.call('ZREM', KEYS[4], id)
redis.call('HDEL', KEYS[5], id)
redis.call('HSET', KEYS[6], id,
  'X|' .. int(open.cycle) .. '|' .. int(open.attempt) .. '|' .. ARGV[7] .. '|' .. open.client)
keep_at_least(KEYS[6], ARGV[8])
return entry
