-- Hand claims back, so that another worker takes them over at once and without counting a crash.
--
-- KEYS  1 meta, 2 events, 3 workers, 4 holds
-- ARGV  1 incarnation, 2 group, 3 consumer, 4 '1' if the consumer goes away, 5 the shelf, then per claim: entry id,
--       delivery count
-- Reply how many were handed back. The consumer `-` stands for nobody, `-` and a name for a shelf: claims that wait for
-- what it names, and are taken by those who do not wait for it themselves.
local refused = check_incarnation()
if refused then return refused end

local group, consumer = ARGV[2], ARGV[3]
local released = 0
for i = 6, #ARGV, 2 do
  local held = claim_held(KEYS[2], group, KEYS[4], consumer, ARGV[i], ARGV[i + 1])
  if held then
    -- Kept only: whoever reads it again has it then.
    if held == 'pending' then redis.call('XCLAIM', KEYS[2], group, '-' .. ARGV[5], 0, ARGV[i], 'JUSTID') end
    redis.call('HDEL', KEYS[4], ARGV[i])
    released = released + 1
  end
end
if ARGV[4] == '1' then
  redis.call('HDEL', KEYS[3], consumer)
  -- Claims that the consumer never heard of, their reply lost, are handed back too: its heartbeat ended in order,
  -- and a takeover from a dead worker would count as a crash.
  local left = redis.pcall('XPENDING', KEYS[2], group, '-', '+', 1000, consumer)
  while not left.err and #left > 0 do
    for _, claim in ipairs(left) do
      redis.call('XCLAIM', KEYS[2], group, '-', 0, claim[1], 'JUSTID')
      released = released + 1
    end
    left = redis.call('XPENDING', KEYS[2], group, '-', '+', 1000, consumer)
  end
  -- Deleting a consumer drops its pending entries: only one that has none.
  if not left.err then redis.call('XGROUP', 'DELCONSUMER', KEYS[2], group, consumer) end
end
return released
