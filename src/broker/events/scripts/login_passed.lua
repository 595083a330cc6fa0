-- Forget the attempts of an account that signed in, and remember from where it did.
--
-- KEYS  1 meta, 2 attempts on this account from this address, 3 attempts from this address, 4 whether the account
--       has signed in from there before
-- ARGV  1 incarnation, 2 how long that is remembered (ms)
local refused = check_incarnation()
if refused then return refused end

redis.call('DEL', KEYS[2])
-- Only where this attempt was counted there (`login_attempt`), and not below nothing.
if redis.call('EXISTS', KEYS[4]) == 0 and tonumber(redis.call('GET', KEYS[3]) or 0) > 0 then
  redis.call('DECR', KEYS[3])
end
redis.call('SET', KEYS[4], '', 'PX', ARGV[2])
return 'ok'
