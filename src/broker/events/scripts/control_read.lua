-- What a follower of the control slot needs: everything at once, or what came after the last id it has.
--
-- KEYS  1 meta, 2 events, 3 registry, 4 client keys
-- ARGV  1 incarnation, 2 last id (`` for everything), 3 how many entries at most
-- Reply {last id of the stream, entries ever added, entries, registry, client keys}; the entries are empty when
--       everything is asked for, the two hashes (flat) when entries are.
local refused = check_incarnation()
if refused then return refused end

local last, added = '0-0', 0
if redis.call('EXISTS', KEYS[2]) == 1 then
  local info = redis.call('XINFO', 'STREAM', KEYS[2])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last = info[i + 1] end
    if info[i] == 'entries-added' then added = info[i + 1] end
  end
end

if ARGV[2] == '' then
  return {last, added, {}, redis.call('HGETALL', KEYS[3]), redis.call('HGETALL', KEYS[4])}
end

local ms, seq = string.match(last, '^(%d+)-(%d+)$')
local seen_ms, seen_seq = string.match(ARGV[2], '^(%d+)-(%d+)$')
if tonumber(ms) < tonumber(seen_ms) or (tonumber(ms) == tonumber(seen_ms) and tonumber(seq) < tonumber(seen_seq)) then
  return redis.error_reply('REFUSED the control stream went back from ' .. ARGV[2] .. ' to ' .. last)
end
if last == ARGV[2] then return {last, added, {}, {}, {}} end
return {last, added, redis.call('XRANGE', KEYS[2], '(' .. ARGV[2], '+', 'COUNT', ARGV[3]), {}, {}}
