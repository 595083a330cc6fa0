-- What of a partition is open now, and what should have been tried again by now.
--
-- KEYS  1 meta, 2 open, 3 due
-- ARGV  1 incarnation, 2 milliseconds that a retry may be late
-- Reply {open messages, overdue retries}
local refused = check_incarnation()
if refused then return refused end
return {redis.call('HLEN', KEYS[2]), redis.call('ZCOUNT', KEYS[3], '-inf', '(' .. int(now_ms() - ARGV[2]))}
