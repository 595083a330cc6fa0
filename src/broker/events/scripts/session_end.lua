-- End a session.
--
-- KEYS  1 meta, 2 session
-- ARGV  1 incarnation
-- Reply whether there was one.
local refused = check_incarnation()
if refused then return refused end

return redis.call('DEL', KEYS[2])
