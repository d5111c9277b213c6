-- Note that a result is about to be committed, whether or not it was evicted.
--
-- KEYS[1]  last uses
-- KEYS[2]  evicted results
-- KEYS[3]  the mark of a deletion under way
-- ARGV[1]  digest
--
-- Returns 1 = it may be committed, 0 = it is being deleted.

if redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[1], now, ARGV[1])
return 1
