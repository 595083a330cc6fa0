-- Wrapped keys of clients and what the registry says of them, as of one moment.
--
-- KEYS  1 meta, 2 events, 3 registry, 4 client keys
-- ARGV  1 incarnation, then the clients (none: all that have keys)
-- Reply {last id of the stream, per client: client, wrapped keys or false, registry entry or false}
local refused = check_incarnation()
if refused then return refused end

local last = '0-0'
if redis.call('EXISTS', KEYS[2]) == 1 then
  last = field(redis.call('XINFO', 'STREAM', KEYS[2]), 'last-generated-id')
end
local clients = #ARGV > 1 and {unpack(ARGV, 2)} or redis.call('HKEYS', KEYS[4])
local reply = {last}
for _, client in ipairs(clients) do
  reply[#reply + 1] = client
  reply[#reply + 1] = redis.call('HGET', KEYS[4], client)
  reply[#reply + 1] = redis.call('HGET', KEYS[3], 'client:' .. client)
end
return reply
