-- Take over claims that nobody works on: handed back, of workers whose heartbeat expired, or idle past their time.
--
-- KEYS  1 meta, 2 events, 3 open, 4 workers
-- ARGV  1 incarnation, 2 group, 3 consumer, 4 idle time after which a living worker's claim is taken too (ms),
--       5 how many at most, 6 '1' if one message that was in hand when a worker died may be among them, 7 '1' if others
--       had the time to show that they live; else only what was handed back is taken
-- Reply per claim {entry id, delivery count, crashes, fields}. Only a dead owner counts as a crash, and messages with
--       crashes are given out one at a time: whoever dies with one of them alone in hand died of it.
local refused = check_incarnation()
if refused then return refused end

local events, group, me, room = KEYS[2], ARGV[2], ARGV[3], tonumber(ARGV[5])
local suspect_allowed, abandoned = ARGV[6] == '1', ARGV[7] == '1'
local now = now_ms()
local reply = {}

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

for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', events, group)) do
  local name, pending = field(info, 'name'), field(info, 'pending')
  local alive_until = tonumber(redis.call('HGET', KEYS[4], name) or '0')
  if name ~= me and alive_until < now and (abandoned or name == '-') then
    if pending == 0 then
      if name ~= '-' then redis.call('XGROUP', 'DELCONSUMER', events, group, name) end
      redis.call('HDEL', KEYS[4], name)
    elseif room > 0 then
      -- Suspects stay in front of the list: look past them for the others.
      local look = redis.call('XPENDING', events, group, '-', '+', room + 1000, name)
      for _, claim in ipairs(look) do
        if room > 0 then take(claim[1], claim[4], name ~= '-') end
      end
    end
  end
end

-- The caller's own idle claims are those whose reply it never got: it renews all that it knows of.
if room > 0 and abandoned then
  for _, claim in ipairs(redis.call('XPENDING', events, group, 'IDLE', ARGV[4], '-', '+', room)) do
    if claim[2] ~= '-' and room > 0 then take(claim[1], claim[4], false) end
  end
end
return reply
