-- Turn due entries whose time has come into DeliveryDue events.
--
-- KEYS  1 meta, 2 events, 3 open, 4 age, 5 due
-- ARGV  1 incarnation, 2 stream name, 3 how many at most
-- Reply {events appended, milliseconds until the next one is due (-1: none waits)}.
local refused = check_incarnation()
if refused then return refused end

local now = now_ms()
local ready = redis.call('ZRANGE', KEYS[5], '-inf', now, 'BYSCORE', 'LIMIT', 0, tonumber(ARGV[3]))
local appended = 0
for _, id in ipairs(ready) do
  local open = parse_open(redis.call('HGET', KEYS[3], id))
  if open and open.phase == 'd' then
    -- An envelope: at, actor, correlation (kept packed), causation.
    local envelope = '\148' .. cmsgpack.pack(now) .. cmsgpack.pack('system') .. open.correlation
      .. cmsgpack.pack(ARGV[2] .. ':' .. open.cause)
    local data = cmsgpack.pack({open.client, open.cycle, open.attempt + 1})
    local entry = redis.call('XADD', KEYS[2], '*', 't', 'DeliveryDue', 's', id, 'm', envelope, 'd', data)
    -- Without its body in the stream nothing else would hold a recreated group back to this event.
    if not redis.call('ZSCORE', KEYS[4], id) then redis.call('ZADD', KEYS[4], entry_ms(entry), id) end
    open.phase, open.due, open.cause = 'r', '0', entry
    redis.call('HSET', KEYS[3], id, format_open(open))
    appended = appended + 1
  end
  redis.call('ZREM', KEYS[5], id)
end

local following = redis.call('ZRANGE', KEYS[5], 0, 0, 'WITHSCORES')
local wait = -1
if following[2] then wait = math.max(0, tonumber(following[2]) - now) end
return {appended, wait}
