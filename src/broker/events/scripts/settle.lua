-- End attempts: the fenced script. What the claim or `open` does not bear out writes nothing.
--
-- KEYS  1 meta, 2 events, 3 open, 4 age, 5 due, 6 bodies, 7 holds, 8… outcome hashes (`done`)
-- ARGV  1 incarnation, 2 group, 3 consumer, 4 how long outcomes are kept (ms), 5 the items (msgpack), each an array of
--       entry id ('' for a direct call without a claim), delivery count, message id, cycle, attempt, kind,
--       delay (ms, kind retry), index of its outcome hash, its outcome record, envelope, data of DeliveryAttempted
--       ('' if none), tag and data of the event that follows ('' if none)
-- Kinds done (the cycle ends), retry (schedules the next attempt), park (set aside), drop (only acknowledge).
-- Reply per item: the stream id of its last event, '' for a drop, false where the claim was lost or `open` disagrees; an
--       error NOGROUP when there are claims and the group was destroyed, nothing being written.
local refused = check_incarnation()
if refused then return refused end

local events, group, consumer = KEYS[2], ARGV[2], ARGV[3]
local items = cmsgpack.unpack(ARGV[5])
local now = now_ms()
-- What has no order to keep is written once for all items, at the end.
local acknowledge, ended, outcomes = {}, {}, {}

local ids = {}
for i, item in ipairs(items) do ids[i] = item[3] end
local records = hash_values(KEYS[3], ids)

-- Without its group nobody knows what was lost: the caller makes it again first, and keeps what it has in hand.
local claimed = false
for _, item in ipairs(items) do claimed = claimed or item[1] ~= '' end
if claimed then
  local found = redis.pcall('XPENDING', events, group)
  if found.err then return found end
end

-- This consumer's claims, read at once where there are many items: entry id → delivery count.
local counts, complete, kept = {}, false, redis.call('EXISTS', KEYS[7]) == 1
if #items >= 8 then
  local most = 2 * #items + 100
  local pending = claimed and redis.call('XPENDING', events, group, '-', '+', most, consumer) or {}
  complete = #pending < most
  for _, claim in ipairs(pending) do counts[claim[1]] = claim[4] end
end

local function holds(entry, count)
  local known = counts[entry]
  if known then return known == count end
  return (kept or not complete) and claim_held(events, group, KEYS[7], consumer, entry, count)
end

local function schedule(open, id, delay, last)
  open.phase, open.due, open.cause, open.crashes = 'd', int(now + delay), last, 0
  redis.call('ZADD', KEYS[5], open.due, id)
end

local function park(open, id, last)
  move_body_aside(events, KEYS[6], KEYS[4], id, open.position)
  redis.call('ZREM', KEYS[5], id)
  open.phase, open.cause = 'p', last
end

local function settle(item)
  local entry, count, id, cycle, attempt, kind = unpack(item, 1, 6)
  local claimed = entry ~= ''
  if claimed and not holds(entry, count) then return false end
  if kind == 'drop' then
    acknowledge[#acknowledge + 1] = entry
    counts[entry] = 0
    return ''
  end
  local record = records[id]
  local expected = false
  if record then
    local open_cycle, made, phase = string.match(record, '^[^|]*|(%d+)|(%d+)|(%a)|')
    expected = tonumber(open_cycle) == cycle
    if claimed then
      expected = expected and phase == 'r' and tonumber(made) + 1 == attempt
    else
      expected = expected and tonumber(made) == attempt
    end
  end
  if claimed then
    acknowledge[#acknowledge + 1] = entry
    -- No second item of this call holds it.
    counts[entry] = 0
  end
  if not expected then return false end

  local envelope, attempted, tag, data = unpack(item, 10, 13)
  local last
  if attempted ~= '' then
    last = redis.call('XADD', events, '*', 't', 'DeliveryAttempted', 's', id, 'm', envelope, 'd', attempted)
  end
  if tag ~= '' then last = redis.call('XADD', events, '*', 't', tag, 's', id, 'm', envelope, 'd', data) end
  if kind == 'done' then
    records[id] = false
    ended[#ended + 1] = id
    local done = KEYS[7 + item[8]]
    local pairs_of = outcomes[done] or {}
    outcomes[done] = pairs_of
    pairs_of[#pairs_of + 1] = id
    pairs_of[#pairs_of + 1] = item[9]
    return last
  end
  local open = parse_open(record)
  if attempted ~= '' then open.attempt = open.attempt + 1 end
  if kind == 'retry' then schedule(open, id, item[7], last) else park(open, id, last) end
  records[id] = format_open(open)
  redis.call('HSET', KEYS[3], id, records[id])
  return last
end

local reply, failure = {}, nil
for i, item in ipairs(items) do
  local ok, result = pcall(settle, item)
  if not ok then
    -- What the items before it have appended must not stay without its records.
    failure = result
    break
  end
  reply[i] = result
end

in_chunks(ended, function(...)
  redis.call('HDEL', KEYS[3], ...)
  redis.call('ZREM', KEYS[4], ...)
  redis.call('ZREM', KEYS[5], ...)
  redis.call('HDEL', KEYS[6], ...)
end)
for done, values in pairs(outcomes) do
  in_chunks(values, function(...) redis.call('HSET', done, ...) end)
  keep_at_least(done, ARGV[4])
end
in_chunks(acknowledge, function(...)
  redis.call('XACK', events, group, ...)
  if kept then redis.call('HDEL', KEYS[7], ...) end
end)
if failure then return redis.error_reply('ERR settle: ' .. tostring(type(failure) == 'table' and failure.err or failure)) end
return reply
