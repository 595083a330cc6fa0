-- Hand out open messages that lie behind the group's position and are pending for nobody, as after XGROUP SETID or
-- DELCONSUMER by hand: no read and no takeover would ever come upon them.
--
-- KEYS  1 meta, 2 events, 3 open, 4 holds
-- ARGV  1 incarnation, 2 group, 3 cursor ('0' at first), 4 about how many to look at
-- Reply {the next cursor ('0': all were looked at), handed out, entries that the stream no longer has}; an error NOGROUP
--       when the group was destroyed.
local refused = check_incarnation()
if refused then return refused end

local events, group = KEYS[2], ARGV[2]

local info = group_info(events, group)
if not info then return redis.error_reply('NOGROUP there is no group ' .. group) end
local last = field(info, 'last-delivered-id')

local function unreachable(entry)
  return not precedes(last, entry)
    and not redis.call('XPENDING', events, group, entry, entry, 1)[1]
    and redis.call('HEXISTS', KEYS[4], entry) == 0
end

local found = redis.call('HSCAN', KEYS[3], ARGV[3], 'COUNT', ARGV[4])
local handed_out, gone = 0, 0
for i = 2, #found[2], 2 do
  local open = parse_open(found[2][i])
  local entry = open.cause ~= '' and open.cause or open.position
  if open.phase == 'r' and unreachable(entry) then
    if redis.call('XRANGE', events, entry, entry)[1] then
      redis.call('XCLAIM', events, group, '-', 0, entry, 'FORCE', 'JUSTID')
      handed_out = handed_out + 1
    else
      gone = gone + 1
    end
  end
end
return {found[1], handed_out, gone}
