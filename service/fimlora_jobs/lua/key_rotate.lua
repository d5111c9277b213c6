-- Give a key another secret; the one before stays good for a while.
--
-- KEYS[1]   the key's hash
-- ARGV[1]   digest of the new secret
-- ARGV[2]   ms for which the secret before is good; 0 = not at all
--
-- Returns 1 = done, 0 = no such key.

local before = redis.call('HGET', KEYS[1], 'digest')
if not before then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'digest', ARGV[1], 'before', before,
           'before_until_ms', string.format('%.0f', now + ARGV[2]))
return 1
