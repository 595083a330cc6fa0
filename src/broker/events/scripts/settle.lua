-- End attempts: the fenced script. What the claim or `open` does not bear out writes nothing.
--
-- KEYS  1 meta, 2 events, 3 open, 4 age, 5 due, 6 bodies, 7… outcome hashes (`done`)
-- ARGV  1 incarnation, 2 group, 3 consumer, 4 outcome hashes' expiry (ms), then per item 13:
--       entry id ('' for a direct call without a claim), delivery count, message id, cycle, attempt, kind,
--       delay (ms, kind retry), index of its outcome hash, its outcome record, envelope, data of DeliveryAttempted
--       ('' if none), tag and data of the event that follows ('' if none)
-- Kinds done (the cycle ends), retry (schedules the next attempt), park (set aside), drop (only acknowledge).
-- Reply per item: the stream id of its last event, '' for a drop, false where the claim was lost or `open` disagrees.
local refused = check_incarnation()
if refused then return refused end

local events, group, consumer = KEYS[2], ARGV[2], ARGV[3]
local now = now_ms()
local touched = {}

local function finish(id, index, record)
  redis.call('HDEL', KEYS[3], id)
  redis.call('ZREM', KEYS[4], id)
  redis.call('ZREM', KEYS[5], id)
  redis.call('HDEL', KEYS[6], id)
  local done = KEYS[6 + index]
  redis.call('HSET', done, id, record)
  touched[done] = true
end

local function settle(base)
  local entry, id = ARGV[base], ARGV[base + 2]
  local cycle, attempt, kind = tonumber(ARGV[base + 3]), tonumber(ARGV[base + 4]), ARGV[base + 5]
  if entry ~= '' and not holds_claim(events, group, consumer, entry, ARGV[base + 1]) then return false end
  if kind == 'drop' then
    redis.call('XACK', events, group, entry)
    return ''
  end
  local open = parse_open(redis.call('HGET', KEYS[3], id))
  local expected = open and open.cycle == cycle
  if entry ~= '' then
    expected = expected and open.phase == 'r' and open.attempt + 1 == attempt
  else
    expected = expected and open.attempt == attempt
  end
  if not expected then
    if entry ~= '' then redis.call('XACK', events, group, entry) end
    return false
  end

  local envelope, attempted, tag, data = ARGV[base + 9], ARGV[base + 10], ARGV[base + 11], ARGV[base + 12]
  local last
  if attempted ~= '' then
    last = redis.call('XADD', events, '*', 't', 'DeliveryAttempted', 's', id, 'm', envelope, 'd', attempted)
    open.attempt = open.attempt + 1
  end
  if tag ~= '' then last = redis.call('XADD', events, '*', 't', tag, 's', id, 'm', envelope, 'd', data) end
  if kind == 'done' then
    finish(id, tonumber(ARGV[base + 7]), ARGV[base + 8])
  elseif kind == 'retry' then
    open.phase, open.due, open.cause, open.crashes = 'd', int(now + tonumber(ARGV[base + 6])), last, 0
    redis.call('HSET', KEYS[3], id, format_open(open))
    redis.call('ZADD', KEYS[5], open.due, id)
  else
    move_body_aside(events, KEYS[6], KEYS[4], id, open.position)
    redis.call('ZREM', KEYS[5], id)
    open.phase, open.cause = 'p', last
    redis.call('HSET', KEYS[3], id, format_open(open))
  end
  if entry ~= '' then redis.call('XACK', events, group, entry) end
  return last
end

local reply = {}
for base = 5, #ARGV, 13 do reply[#reply + 1] = settle(base) end
for done in pairs(touched) do redis.call('PEXPIRE', done, ARGV[4]) end
return reply
