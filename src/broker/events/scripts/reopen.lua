-- Open the next cycle of a message that has an outcome, or give a parked one back to the workers.
--
-- KEYS  1 meta, 2 events, 3 open, 4 age, 5 bodies, 6 the message's outcome hash
-- ARGV  1 incarnation, 2 message id, 3 kind (resend | unpark), 4 cycle that the caller knows, 5 envelope,
--       6 tag, 7 data, 8 client, 9 packed correlation
-- Reply the stream id of the event, or 'open' (a cycle is open), 'stale' (another cycle), 'missing' (nothing is parked).
local refused = check_incarnation()
if refused then return refused end

local events, id, cycle = KEYS[2], ARGV[2], tonumber(ARGV[4])
local open = parse_open(redis.call('HGET', KEYS[3], id))

if ARGV[3] == 'unpark' then
  if not open or open.phase ~= 'p' then return 'missing' end
  if open.cycle ~= cycle then return 'stale' end
  local entry = redis.call('XADD', events, '*', 't', ARGV[6], 's', id, 'm', ARGV[5], 'd',
    cmsgpack.pack({open.client, open.cycle, open.attempt + 1}))
  redis.call('ZADD', KEYS[4], entry_ms(entry), id)
  open.phase, open.crashes, open.cause = 'r', 0, entry
  redis.call('HSET', KEYS[3], id, format_open(open))
  return entry
end

if open then return 'open' end
local done = redis.call('HGET', KEYS[6], id)
if done and tonumber(string.match(done, '^%a|(%d+)|')) ~= cycle then return 'stale' end
local entry = redis.call('XADD', events, '*', 't', ARGV[6], 's', id, 'm', ARGV[5], 'd', ARGV[7])
redis.call('HSET', KEYS[3], id, entry .. '|' .. (cycle + 1) .. '|0|r|0|0||' .. ARGV[8] .. '|' .. ARGV[9])
redis.call('ZADD', KEYS[4], entry_ms(entry), id)
redis.call('HDEL', KEYS[6], id)
return entry
