-- Take over claims that nobody works on: handed back or shelved, of workers whose heartbeat expired, or idle past
-- their time.
--
-- KEYS  1 meta, 2 events, 3 open, 4 workers
-- ARGV  1 incarnation, 2 group, 3 consumer, 4 idle time after which a living worker's claim is taken too (ms),
--       5 how many at most, 6 '1' if one message that was in hand when a worker died may be among them, 7 '1' if others
--       had the time to show that they live; else only what was handed back is taken, 8 shelves to leave (msgpack array)
-- Reply per claim {entry id, delivery count, crashes, fields}. Only a dead owner counts as a crash, and messages with
--       crashes are given out one at a time: whoever dies with one of them alone in hand died of it.
local refused = check_incarnation()
if refused then return refused end

local events, group, me, room = KEYS[2], ARGV[2], ARGV[3], tonumber(ARGV[5])
local suspect_allowed, abandoned = ARGV[6] == '1', ARGV[7] == '1'
local now = now_ms()
local reply = {}
local left = {}
for _, shelf in ipairs(cmsgpack.unpack(ARGV[8])) do left[shelf] = true end

local function count_crash(fields)
  local id = field(fields, 's')
  local open = parse_open(redis.call('HGET', KEYS[3], id))
  if not open then return 0 end
  open.crashes = open.crashes + 1
  redis.call('HSET', KEYS[3], id, format_open(open))
  return open.crashes
end

local function crashes_of(fields)
  local open = parse_open(redis.call('HGET', KEYS[3], field(fields, 's')))
  return open and open.crashes or 0
end

local function handled(tag)
  return string.find(tag, '^MessageSubmitted') or string.find(tag, '^DeliveryDue') or string.find(tag, '^ResendRequested')
end

local function take(entry, count, died)
  local found = redis.call('XRANGE', events, entry, entry)[1]
  if not found then
    redis.call('XACK', events, group, entry)
    return
  end
  if not handled(field(found[2], 't')) then
    redis.call('XACK', events, group, entry)
    return
  end
  local crashes = died and count_crash(found[2]) or crashes_of(found[2])
  -- Counted once: from here on the entry belongs to nobody.
  if died then redis.call('XCLAIM', events, group, '-', 0, entry, 'JUSTID') end
  if crashes > 0 then
    if not suspect_allowed then return end
    suspect_allowed = false
  end
  redis.call('XCLAIM', events, group, me, 0, entry, 'RETRYCOUNT', count + 1, 'JUSTID')
  reply[#reply + 1] = {entry, count + 1, crashes, found[2]}
  room = room - 1
end

local function forget(name, pending)
  if pending > 0 then return end
  if name ~= '-' then redis.call('XGROUP', 'DELCONSUMER', events, group, name) end
  redis.call('HDEL', KEYS[4], name)
end

local consumers, known, living = redis.call('XINFO', 'CONSUMERS', events, group), {}, {}
for _, info in ipairs(consumers) do
  local name, pending = field(info, 'name'), field(info, 'pending')
  local nobody = string.sub(name, 1, 1) == '-'
  known[name] = true
  if not nobody and (name == me or alive_until(KEYS[4], name, now) >= now) then
    if pending > 0 then living[#living + 1] = name end
  elseif (nobody or abandoned) and not left[name] then
    forget(name, pending)
    if pending > 0 and room > 0 then
      -- Suspects stay in front of the list: look past them for the others.
      for _, claim in ipairs(redis.call('XPENDING', events, group, '-', '+', room + 1000, name)) do
        if room > 0 then take(claim[1], claim[4], not nobody) end
      end
    end
  end
end

if abandoned then
  -- The caller's own idle claims are those whose reply it never got: it renews all that it knows of.
  for _, name in ipairs(living) do
    if room > 0 then
      for _, claim in ipairs(redis.call('XPENDING', events, group, 'IDLE', ARGV[4], '-', '+', room, name)) do
        if room > 0 then take(claim[1], claim[4], false) end
      end
    end
  end
  -- A destroyed group takes its consumers along, but not what they said.
  if redis.call('HLEN', KEYS[4]) > #consumers then
    for _, name in ipairs(redis.call('HKEYS', KEYS[4])) do
      if not known[name] and name ~= me and alive_until(KEYS[4], name, now) < now then redis.call('HDEL', KEYS[4], name) end
    end
  end
end
return reply
