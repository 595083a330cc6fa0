-- Count an attempt to sign in before it is made, unless too many came before it.
--
-- KEYS  1 meta, 2 attempts on this account from this address, 3 attempts from this address, 4 whether the account
--       has signed in from there before
-- ARGV  1 incarnation, 2 attempts on the account from there, 3 from there in all, 4 window (ms)
-- Reply 0, or the milliseconds to wait.
local refused = check_incarnation()
if refused then return refused end

local counted = {{KEYS[2], ARGV[2]}}
-- Who has signed in from there is not held up by strangers behind the same address.
if redis.call('EXISTS', KEYS[4]) == 0 then counted[2] = {KEYS[3], ARGV[3]} end

for _, one in ipairs(counted) do
  if tonumber(redis.call('GET', one[1]) or 0) >= tonumber(one[2]) then
    return math.max(redis.call('PTTL', one[1]), 1)
  end
end
for _, one in ipairs(counted) do
  if redis.call('INCR', one[1]) == 1 then redis.call('PEXPIRE', one[1], ARGV[4]) end
end
return 0
