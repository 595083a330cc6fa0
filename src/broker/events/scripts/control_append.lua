-- One transaction on the control slot: events, registry and client keys together or not at all, once however often
-- the call is repeated.
--
-- KEYS  1 meta, 2 events, 3 registry, 4 client keys, 5 batch
-- ARGV  1 incarnation, 2 batch record's expiry (ms), 3 number of expectations, 4 of writes, 5 of deletions, 6 of
--       client keys written, 7 of client keys deleted, 8 of events, then in this order:
--       per expectation: field, version (`0`: absent); per write: field, payload; per deletion: field;
--       per client key written: client, wrapped; per client key deleted: client;
--       per event: tag, subject, envelope, data
-- Reply {`ok`, version, position …} or {`conflict`, field that has another version}.
-- An entry is `version|payload`. Versions are drawn from one counter, so that an entry which was deleted and made
-- again never has a version that somebody read before.
local refused = check_incarnation()
if refused then return refused end

local before = redis.call('GET', KEYS[5])
if before then return cmsgpack.unpack(before) end

local counts = {}
for i = 3, 8 do counts[i] = tonumber(ARGV[i]) end
local at = 9

for _ = 1, counts[3] do
  local entry = redis.call('HGET', KEYS[3], ARGV[at])
  local version = entry and string.match(entry, '^(%d+)|') or '0'
  if version ~= ARGV[at + 1] then return {'conflict', ARGV[at]} end
  at = at + 2
end

local version = redis.call('HINCRBY', KEYS[1], 'version', 1)
for _ = 1, counts[4] do
  redis.call('HSET', KEYS[3], ARGV[at], int(version) .. '|' .. ARGV[at + 1])
  at = at + 2
end
for _ = 1, counts[5] do
  redis.call('HDEL', KEYS[3], ARGV[at])
  at = at + 1
end
for _ = 1, counts[6] do
  redis.call('HSET', KEYS[4], ARGV[at], ARGV[at + 1])
  at = at + 2
end
for _ = 1, counts[7] do
  redis.call('HDEL', KEYS[4], ARGV[at])
  at = at + 1
end

local reply = {'ok', int(version)}
for _ = 1, counts[8] do
  reply[#reply + 1] =
    redis.call('XADD', KEYS[2], '*', 't', ARGV[at], 's', ARGV[at + 1], 'm', ARGV[at + 2], 'd', ARGV[at + 3])
  at = at + 4
end
redis.call('SET', KEYS[5], cmsgpack.pack(reply), 'PX', ARGV[2])
return reply
