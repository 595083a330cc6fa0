-- Begin a session: a family of refresh tokens of which one is current. Repeated, it writes the same again.
--
-- KEYS  1 meta, 2 session
-- ARGV  1 incarnation, 2 user id, 3 mark of the user's password, 4 hash of the token, 5 lifetime (ms)
local refused = check_incarnation()
if refused then return refused end

redis.call('HSET', KEYS[2], 'user', ARGV[2], 'mark', ARGV[3], 'current', ARGV[4], 'count', 1)
redis.call('PEXPIRE', KEYS[2], ARGV[5])
return 'ok'
