-- Decide which claimed entries are to be handled; acknowledge all others.
--
-- KEYS  1 meta, 2 events, 3 open, 4 bodies, 5 workers, 6 holds
-- ARGV  1 incarnation, 2 group, 3 consumer, 4 ids of entries that need no handling (msgpack array),
--       5 candidates (msgpack), each an array of entry id, message id, cycle, attempt that the entry stands for
-- Reply per candidate: false (dropped: `open` knows no such attempt, or another worker had it in hand when the group was
--       lost and has got the claim back), or
--       {open record, body}; body is `tag|data` of the event that holds the ciphertext, false where it is the candidate
--       itself, '' where it is gone.
local refused = check_incarnation()
if refused then return refused end

local group = ARGV[2]
local acknowledge = cmsgpack.unpack(ARGV[4])
local candidates = cmsgpack.unpack(ARGV[5])

local ids = {}
for i, candidate in ipairs(candidates) do ids[i] = candidate[2] end
local records = hash_values(KEYS[3], ids)

local function body_of(id, position)
  local body = redis.call('HGET', KEYS[4], id)
  if body then return body end
  local found = redis.call('XRANGE', KEYS[2], position, position)[1]
  return found and (field(found[2], 't') .. '|' .. field(found[2], 'd')) or ''
end

-- Whether the claim went back to another worker that has this entry in hand, and lives.
local kept, now = redis.call('EXISTS', KEYS[6]) == 1, now_ms()
local function given_back(entry)
  local holder, count = string.match(redis.call('HGET', KEYS[6], entry) or '', '^(.*)|(%d+)$')
  if not holder then return false end
  redis.call('HDEL', KEYS[6], entry)
  if holder == ARGV[3] or alive_until(KEYS[5], holder, now) < now then return false end
  redis.call('XCLAIM', KEYS[2], group, holder, 0, entry, 'RETRYCOUNT', count, 'JUSTID')
  return true
end

local reply = {}
for i, candidate in ipairs(candidates) do
  local entry, id, cycle, attempt = unpack(candidate, 1, 4)
  local record = records[id]
  reply[i] = false
  local due, position = false, nil
  if record then
    local open_cycle, made, phase, stands
    position, open_cycle, made, phase, stands =
      string.match(record, '^([^|]*)|(%d+)|(%d+)|(%a)|%d+|%d+|([^|]*)|')
    due = phase == 'r' and tonumber(open_cycle) == cycle and tonumber(made) + 1 == attempt
      and (stands == '' or stands == entry)
  end
  if not due then
    acknowledge[#acknowledge + 1] = entry
  elseif not (kept and given_back(entry)) then
    reply[i] = {record, position ~= entry and body_of(id, position)}
  end
end

in_chunks(acknowledge, function(...)
  redis.call('XACK', KEYS[2], group, ...)
  if kept then redis.call('HDEL', KEYS[6], ...) end
end)
return reply
