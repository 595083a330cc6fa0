-- Append a group of submitted messages to one partition, once however often the call is repeated.
--
-- KEYS  1 meta, 2 events, 3 open, 4 age, 5 batch, 6 outcome hash of the witness, 7… the idempotency record of each
--       message that has a key, in order
-- ARGV  1 incarnation, 2 batch record's expiry (ms), 3 idempotency expiry (ms), 4 highest position seen ('' if none),
--       5 witness: id of a message of the group that has no key ('' if none), then per message: id, envelope, data, client, packed correlation, request hash in hex ('' without a key),
--       queued at (ms)
-- Reply `first position|count`, then a line for each message that was not appended: `index|C` (its key was used for
--       another request) or `index|R|message id in hex|position|queued at` (its key was used for this one).
--       Appended messages have consecutive ids.
local refused = check_incarnation()
if refused then return refused end

local before = redis.call('GET', KEYS[5])
if before then
  -- A write, so that WAIT after this call waits for what the first one wrote, on whichever connection that was.
  redis.call('PEXPIRE', KEYS[5], ARGV[2])
  return before
end

-- A network or a frozen process may deliver a repeated call long after the batch record has gone. The witness is
-- appended by every first call, so who knows it has seen this group; messages with keys have records of their own.
local witness = ARGV[5]
if witness ~= '' and
  (redis.call('HEXISTS', KEYS[3], witness) == 1 or redis.call('HEXISTS', KEYS[6], witness) == 1) then
  return redis.error_reply('ERR this group was appended before, and its answer has expired')
end

if ARGV[4] ~= '' then
  local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
  local seen_ms, seen_seq = string.match(ARGV[4], '^(%d+)-(%d+)$')
  local ms, seq = '0', '0'
  if last then
    ms, seq = string.match(last[1], '^(%d+)-(%d+)$')
  else
    -- Trimmed empty, the stream itself still knows; gone, XINFO is an error.
    local info = redis.pcall('XINFO', 'STREAM', KEYS[2])
    if not info.err then ms, seq = string.match(field(info, 'last-generated-id'), '^(%d+)-(%d+)$') end
  end
  if tonumber(ms) < tonumber(seen_ms) or (tonumber(ms) == tonumber(seen_ms) and tonumber(seq) < tonumber(seen_seq)) then
    local why = 'the log went back from ' .. ARGV[4] .. ' to ' .. ms .. '-' .. seq
    redis.call('HSET', KEYS[1], 'refused', why)
    return redis.error_reply('REFUSED ' .. why)
  end
end

local first, auto = '', '*'
local count = 0
local exceptions = {}
local next_key = 7
for base = 6, #ARGV, 7 do
  local id, envelope, data, client = ARGV[base], ARGV[base + 1], ARGV[base + 2], ARGV[base + 3]
  local correlation, request_hash, queued_at = ARGV[base + 4], ARGV[base + 5], ARGV[base + 6]
  local index = (base - 6) / 7
  local record_key, record
  if request_hash ~= '' then
    record_key = KEYS[next_key]
    next_key = next_key + 1
    record = redis.call('GET', record_key)
  end
  if record then
    local used_for, answer = string.match(record, '^([^|]*)|(.*)$')
    if used_for == request_hash then
      exceptions[#exceptions + 1] = index .. '|R|' .. answer
    else
      exceptions[#exceptions + 1] = index .. '|C'
    end
  else
    local entry = redis.call('XADD', KEYS[2], auto, 't', 'MessageSubmitted', 's', id, 'm', envelope, 'd', data)
    if first == '' then
      -- Before Redis 7.2 the clock goes on inside a script.
      first, auto = entry, string.match(entry, '^%d+-') .. '*'
    end
    count = count + 1
    redis.call('HSET', KEYS[3], id, entry .. '|1|0|r|0|0||' .. client .. '|' .. correlation)
    redis.call('ZADD', KEYS[4], entry_ms(entry), id)
    if record_key then
      local hex = string.gsub(id, '.', function(c) return string.format('%02x', string.byte(c)) end)
      redis.call('SET', record_key, request_hash .. '|' .. hex .. '|' .. entry .. '|' .. queued_at, 'PX', ARGV[3])
    end
  end
end

table.insert(exceptions, 1, first .. '|' .. count)
local reply = table.concat(exceptions, '\n')
redis.call('SET', KEYS[5], reply, 'PX', ARGV[2])
return reply
