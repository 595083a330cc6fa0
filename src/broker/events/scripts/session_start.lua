-- Begin a session: a family of refresh tokens of which one is current. Repeated, it writes the same again.
--
-- KEYS  1 meta, 2 session, 3 the user's sessions
-- ARGV  1 incarnation, 2 user id, 3 mark of the user's password, 4 hash of the token, 5 lifetime (ms), 6 session id,
--       7 how many sessions a user may have
-- Reply the ids of the oldest sessions past that number, for the caller to end.
local refused = check_incarnation()
if refused then return refused end

redis.call('HSET', KEYS[2], 'user', ARGV[2], 'mark', ARGV[3], 'current', ARGV[4], 'count', 1)
redis.call('PEXPIRE', KEYS[2], ARGV[5])
-- Microseconds: within a millisecond two sessions may begin.
local time = redis.call('TIME')
redis.call('ZADD', KEYS[3], int(time[1] * 1000000 + time[2]), ARGV[6])
redis.call('PEXPIRE', KEYS[3], ARGV[5])
local past = redis.call('ZCARD', KEYS[3]) - tonumber(ARGV[7])
return past > 0 and redis.call('ZRANGE', KEYS[3], 0, past - 1) or {}
