-- Shared by every script; the loader puts it in front.

-- The log this caller knows, or an error. KEYS[1] is always `meta`, ARGV[1] always the incarnation.
local function check_incarnation()
  local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'refused')
  if meta[1] ~= ARGV[1] then
    return redis.error_reply('REFUSED the incarnation is ' .. (meta[1] or 'missing') .. ', not ' .. ARGV[1])
  end
  if meta[2] then
    return redis.error_reply('REFUSED ' .. meta[2])
  end
end

-- Milliseconds by the server's clock, the same during the whole script.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Numbers of 13 digits would be written as 1.7e+12.
local function int(number)
  return string.format('%.0f', number)
end

-- Have a key live for this long (ms) from now. One that was to live longer does: a process with another setting said so.
local function keep_at_least(key, ms)
  if redis.call('PTTL', key) < tonumber(ms) then redis.call('PEXPIRE', key, ms) end
end

local function entry_ms(entry_id)
  return tonumber(string.match(entry_id, '^(%d+)-'))
end

-- Whether the entry id `one` comes before `other`.
local function precedes(one, other)
  local ms, seq = string.match(one, '^(%d+)-(%d+)$')
  local other_ms, other_seq = string.match(other, '^(%d+)-(%d+)$')
  ms, other_ms = tonumber(ms), tonumber(other_ms)
  return ms < other_ms or (ms == other_ms and tonumber(seq) < tonumber(other_seq))
end

-- An error unless the lease belongs to this owner, in this epoch.
local function check_lease(key, owner, epoch)
  local lease = redis.call('HMGET', key, 'owner', 'epoch')
  if lease[1] ~= owner or lease[2] ~= epoch then
    return redis.error_reply('LEASE epoch ' .. (lease[2] or 'none') .. ' is owned by another')
  end
end

-- An open record: position|cycle|attempt|phase|due|crashes|cause|client|correlation (msgpack, may hold any byte).
-- Phases: r(eady): an entry of the stream stands for its next attempt; d(ue): waits in `due`; p(arked).
-- Cause: when ready, the entry that stands for the attempt ('': the one at position); else the event that led here.
local function parse_open(record)
  if not record then return nil end
  local position, cycle, attempt, phase, due, crashes, cause, client, correlation =
    string.match(record, '^([^|]*)|(%d+)|(%d+)|(%a)|(%d+)|(%d+)|([^|]*)|([^|]*)|(.*)$')
  return {
    position = position, cycle = tonumber(cycle), attempt = tonumber(attempt), phase = phase,
    due = due, crashes = tonumber(crashes), cause = cause, client = client, correlation = correlation,
  }
end

local function format_open(open)
  return table.concat({
    open.position, open.cycle, open.attempt, open.phase, open.due, open.crashes, open.cause, open.client,
    open.correlation,
  }, '|')
end

-- How `consumer` holds the claim that it says it holds: 'pending' for it with this delivery count, 'kept' where it had it
-- in hand when the group was lost (`holds`) and no other has been given it since, nil where it does not. With the group
-- destroyed XPENDING is an error.
local function claim_held(events, group, holds, consumer, entry, count)
  local pending = redis.pcall('XPENDING', events, group, entry, entry, 1, consumer)
  if not pending.err and pending[1] then
    return pending[1][4] == tonumber(count) and 'pending' or nil
  end
  return redis.call('HGET', holds, entry) == consumer .. '|' .. count and 'kept' or nil
end

-- Milliseconds until which a worker counts as alive, 0 if it never said so. One that would live longer than it can have
-- said spoke before the clock went back: it has one more heartbeat's time to speak again.
local function alive_until(workers, name, now)
  local upto, ttl = string.match(redis.call('HGET', workers, name) or '', '^(%d+)|?(%d*)$')
  if not upto then return 0 end
  if ttl ~= '' and tonumber(upto) > now + tonumber(ttl) then
    upto = int(now + tonumber(ttl))
    redis.call('HSET', workers, name, upto .. '|' .. ttl)
  end
  return tonumber(upto)
end

local function field(entry, name)
  for i = 1, #entry, 2 do
    if entry[i] == name then return entry[i + 1] end
  end
end

-- What XINFO says of a stream's consumer group; nil without the group or the stream.
local function group_info(events, name)
  for _, info in ipairs(redis.call('EXISTS', events) == 1 and redis.call('XINFO', 'GROUPS', events) or {}) do
    if field(info, 'name') == name then return info end
  end
end

-- Move the ciphertext of an open message out of the stream, so that it does not hold back trimming.
local function move_body_aside(events, bodies, age, id, position)
  if redis.call('HEXISTS', bodies, id) == 0 then
    local found = redis.call('XRANGE', events, position, position)[1]
    if found then
      redis.call('HSET', bodies, id, field(found[2], 't') .. '|' .. field(found[2], 'd'))
    end
  end
  redis.call('ZREM', age, id)
end

-- Call `each` with the elements of `list`, an even number of at most 1000 at a time: a call takes only so many.
local function in_chunks(list, each)
  for from = 1, #list, 1000 do each(unpack(list, from, math.min(from + 999, #list))) end
end

-- The values of these fields of a hash, by field; false where there is none.
local function hash_values(key, fields)
  local values = {}
  for from = 1, #fields, 1000 do
    local upto = math.min(from + 999, #fields)
    local found = redis.call('HMGET', key, unpack(fields, from, upto))
    for i = from, upto do values[fields[i]] = found[i - from + 1] end
  end
  return values
end
