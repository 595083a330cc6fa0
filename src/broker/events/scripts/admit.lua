-- Decide which claimed entries are to be handled; acknowledge all others.
--
-- KEYS  1 meta, 2 events, 3 open, 4 bodies
-- ARGV  1 incarnation, 2 group, 3 number of entries that need no handling, those entries' ids,
--       then per candidate: entry id, message id, cycle, attempt that the entry stands for
-- Reply per candidate: false (dropped: `open` knows no such attempt), or
--       {open record, body}; body is `tag|data` of the event that holds the ciphertext, false where it is the candidate
--       itself, '' where it is gone.
local refused = check_incarnation()
if refused then return refused end

local group = ARGV[2]
local others = tonumber(ARGV[3])
local acknowledge = {}
for i = 4, 3 + others do acknowledge[#acknowledge + 1] = ARGV[i] end

local reply = {}
for base = 4 + others, #ARGV, 4 do
  local entry, id, cycle, attempt = ARGV[base], ARGV[base + 1], tonumber(ARGV[base + 2]), tonumber(ARGV[base + 3])
  local record = redis.call('HGET', KEYS[3], id)
  local open = parse_open(record)
  if open and open.phase == 'r' and open.cycle == cycle and open.attempt + 1 == attempt then
    local body = false
    if open.position ~= entry then
      body = redis.call('HGET', KEYS[4], id)
      if not body then
        local found = redis.call('XRANGE', KEYS[2], open.position, open.position)[1]
        body = found and (field(found[2], 't') .. '|' .. field(found[2], 'd')) or ''
      end
    end
    reply[#reply + 1] = {record, body}
  else
    reply[#reply + 1] = false
    acknowledge[#acknowledge + 1] = entry
  end
end

-- A Lua call takes a bounded number of arguments.
for from = 1, #acknowledge, 1000 do
  redis.call('XACK', KEYS[2], group, unpack(acknowledge, from, math.min(from + 999, #acknowledge)))
end
return reply
