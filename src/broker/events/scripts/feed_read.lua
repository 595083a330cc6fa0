-- Read on behalf of the lease's owner, from the position that the owner names, and extend the lease.
-- KEYS meta, lease, events.
-- ARGV incarnation, owner, epoch, ttl (ms), group, position, entries read up to it, highest checkpoint,
--   count (0: only extend the lease).
-- Returns {status, entries trimmed, last id, entries added, entries}; status is OK or TRIMMED.
local refused = check_incarnation()
if refused then return refused end

local now = now_ms()
local lost = check_lease(KEYS[2], ARGV[2], ARGV[3])
if lost then return lost end
-- Nobody took it meanwhile, so an expired lease of ours is still ours; rarely written, for the AOF's sake.
local ttl = tonumber(ARGV[4])
local left = tonumber(redis.call('HGET', KEYS[2], 'expires')) - now
if left * 3 < ttl * 2 or left > ttl then
  redis.call('HSET', KEYS[2], 'expires', int(now + ttl))
end

local group, position, read, count = ARGV[5], ARGV[6], ARGV[7], tonumber(ARGV[9])

if redis.call('EXISTS', KEYS[3]) == 0 and ARGV[8] == '0-0' then
  return {'OK', 0, '0-0', 0, {}}
end

local last, added, length, first = '0-0', 0, 0, nil
local info = redis.pcall('XINFO', 'STREAM', KEYS[3])
if not info.err then
  last, added, length = field(info, 'last-generated-id'), field(info, 'entries-added'), field(info, 'length')
  first = (field(info, 'first-entry') or {})[1]
end

local function refuse(why)
  redis.call('HSET', KEYS[1], 'refused', why .. ': Redis lost data')
  return redis.error_reply('REFUSED ' .. why .. ': Redis lost data')
end

if precedes(last, ARGV[8]) then return refuse('the stream ends at ' .. last .. ', and was read up to ' .. ARGV[8]) end
if count == 0 then
  return {'OK', 0, last, added, {}}
end
local trimmed = added - length
if tonumber(read) < trimmed and precedes(position, last) and (not first or precedes(position, first)) then
  return {'TRIMMED', trimmed, last, added, {}}
end
-- An older Redis that others went on with before this look goes on after a place that it does not know, or, where all
-- of it had been cut, after fewer events than were read.
local before = first and precedes(position, first) and trimmed or added
if tonumber(read) > before then
  return refuse(int(before) .. ' events lie up to ' .. position .. ' at most, and ' .. read .. ' were read')
end
if first and not precedes(position, first) and position ~= last
  and not redis.call('XRANGE', KEYS[3], position, position)[1] then
  return refuse('the entry at ' .. position .. ', which was read, is not there')
end

-- The owner's position rules; the group only shows it, and may have been destroyed or moved by anybody.
local shown = group_info(KEYS[3], group)
if not shown then
  redis.call('XGROUP', 'CREATE', KEYS[3], group, position, 'ENTRIESREAD', read)
elseif field(shown, 'last-delivered-id') ~= position or field(shown, 'entries-read') ~= tonumber(read) then
  redis.call('XGROUP', 'SETID', KEYS[3], group, position, 'ENTRIESREAD', read)
end
if last == position then
  return {'OK', trimmed, last, added, {}}
end
local found = redis.call('XREADGROUP', 'GROUP', group, 'projector', 'COUNT', count, 'NOACK',
  'STREAMS', KEYS[3], '>')
return {'OK', trimmed, last, added, found and found[1] and found[1][2] or {}}
