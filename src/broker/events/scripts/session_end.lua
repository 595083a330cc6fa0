-- End a session.
--
-- KEYS  1 meta, 2 session, 3 its user's sessions
-- ARGV  1 incarnation, 2 session id
-- Reply whether there was one.
local refused = check_incarnation()
if refused then return refused end

redis.call('ZREM', KEYS[3], ARGV[2])
return redis.call('DEL', KEYS[2])
