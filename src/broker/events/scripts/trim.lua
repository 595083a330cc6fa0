-- Cut a stream below everything that is still needed, on behalf of the archive lease's owner.
--
-- KEYS  1 meta, 2 lease, 3 events, 4 archive; of a partition also 5 open, 6 age, 7 bodies
-- ARGV  1 incarnation, 2 owner, 3 epoch, 4 delivery group ('' where nothing is delivered), 5 history to keep (ms),
--       6 how many bodies to move aside at most, then pairs: who needs the stream from where on (0-0: all of it)
-- Reply {entries cut, bound, who holds it ('' while nothing older than the history to keep is held), milliseconds by
--       which what is held is overdue, bodies moved aside}
local refused = check_incarnation()
if refused then return refused end
local lost = check_lease(KEYS[2], ARGV[2], ARGV[3])
if lost then return lost end

local events, archive, group = KEYS[3], KEYS[4], ARGV[4]
local open_key, age, bodies = KEYS[5], KEYS[6], KEYS[7]
local wanted = math.max(0, now_ms() - tonumber(ARGV[5]))
if redis.call('EXISTS', events) == 0 then return {0, '0-0', '', 0, 0} end

-- A message that waits long must not hold the stream: only the entry that a worker has yet to handle stays needed.
local moved = 0
local function move_old_bodies()
  local old = redis.call('ZRANGE', age, '-inf', '(' .. int(wanted), 'BYSCORE', 'LIMIT', 0, ARGV[6])
  for _, id in ipairs(old) do
    local open = parse_open(redis.call('HGET', open_key, id))
    if not open then
      redis.call('ZREM', age, id)
    elseif open.phase ~= 'r' then
      move_body_aside(events, bodies, age, id, open.position)
      moved = moved + 1
    elseif open.cause ~= '' and redis.call('HEXISTS', bodies, id) == 0 then
      move_body_aside(events, bodies, age, id, open.position)
      redis.call('ZADD', age, entry_ms(open.cause), id)
      moved = moved + 1
    end
  end
end

local bound, holder = int(wanted) .. '-0', 'history'
local function hold(who, id)
  if precedes(id, bound) then bound, holder = id, who end
end

-- Nobody has handled what is pending or not delivered; with the group gone nobody knows what was.
local function delivery_needs()
  local pending = redis.pcall('XPENDING', events, group)
  if pending.err then return '0-0' end
  if pending[1] > 0 then return pending[2] end
  local info = group_info(events, group)
  return info and field(info, 'last-delivered-id') or '0-0'
end

hold('archive', redis.call('HGET', archive, 'position') or '0-0')
if open_key then
  move_old_bodies()
  hold('delivery', delivery_needs())
  local oldest = redis.call('ZRANGE', age, 0, 0, 'WITHSCORES')
  if oldest[2] then hold('open', int(tonumber(oldest[2])) .. '-0') end
end
for i = 7, #ARGV, 2 do hold(ARGV[i], ARGV[i + 1]) end

local left = redis.call('XRANGE', events, '-', '+', 'COUNT', 2)
local cut = 0
if left[1] and precedes(left[1][1], bound) then
  cut = redis.call('XTRIM', events, 'MINID', '=', bound)
  left = redis.call('XRANGE', events, '-', '+', 'COUNT', 2)
end

-- The entry at the bound itself always stays: what comes after it is what is held.
local held = left[1]
if held and held[1] == bound then held = left[2] end
local overdue = held and math.max(0, wanted - entry_ms(held[1])) or 0
if overdue == 0 then holder = '' end
if cut > 0 or redis.call('HGET', archive, 'holder') ~= holder then
  redis.call('HSET', archive, 'bound', bound, 'holder', holder)
end
return {cut, bound, holder, overdue, moved}
