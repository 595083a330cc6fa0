-- Decide which claimed entries are to be handled; acknowledge all others.
--
-- KEYS  1 meta, 2 events, 3 open, 4 bodies
-- ARGV  1 incarnation, 2 group, 3 ids of entries that need no handling (msgpack array),
--       4 candidates (msgpack), each an array of entry id, message id, cycle, attempt that the entry stands for
-- Reply per candidate: false (dropped: `open` knows no such attempt), or
--       {open record, body}; body is `tag|data` of the event that holds the ciphertext, false where it is the candidate
--       itself, '' where it is gone.
local refused = check_incarnation()
if refused then return refused end

local group = ARGV[2]
local acknowledge = cmsgpack.unpack(ARGV[3])
local candidates = cmsgpack.unpack(ARGV[4])

local ids = {}
for i, candidate in ipairs(candidates) do ids[i] = candidate[2] end
local records = hash_values(KEYS[3], ids)

local function body_of(id, position)
  local body = redis.call('HGET', KEYS[4], id)
  if body then return body end
  local found = redis.call('XRANGE', KEYS[2], position, position)[1]
  return found and (field(found[2], 't') .. '|' .. field(found[2], 'd')) or ''
end

local reply = {}
for i, candidate in ipairs(candidates) do
  local entry, id, cycle, attempt = unpack(candidate, 1, 4)
  local record = records[id]
  reply[i] = false
  if record then
    local position, open_cycle, made, phase, stands =
      string.match(record, '^([^|]*)|(%d+)|(%d+)|(%a)|%d+|%d+|([^|]*)|')
    local due = phase == 'r' and tonumber(open_cycle) == cycle and tonumber(made) + 1 == attempt
    if due and (stands == '' or stands == entry) then
      reply[i] = {record, position ~= entry and body_of(id, position)}
    end
  end
  if not reply[i] then acknowledge[#acknowledge + 1] = entry end
end

in_chunks(acknowledge, function(...) redis.call('XACK', KEYS[2], group, ...) end)
return reply
