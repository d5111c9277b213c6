-- Take a result for deletion, if it was not used meanwhile.
--
-- KEYS[1]  last uses
-- KEYS[2]  evicted results
-- KEYS[3]  the mark of a deletion under way
-- ARGV[1]  digest
-- ARGV[2]  the last use that was seen; '' = none
-- ARGV[3]  seconds that the mark lasts
-- ARGV[4]  how many evicted digests to remember
--
-- Returns 1 = claimed, 0 = it was used since, or is being deleted.

local used = redis.call('ZSCORE', KEYS[1], ARGV[1])
if (used and tonumber(used) or -1) ~= (tonumber(ARGV[2]) or -1) then return 0 end
if redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -1 - ARGV[4])
redis.call('SET', KEYS[3], '1', 'EX', ARGV[3])
return 1
