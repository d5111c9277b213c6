-- Note that a result is about to be read.
--
-- KEYS[1]  last uses
-- KEYS[2]  evicted results
-- ARGV[1]  digest
-- ARGV[2]  '1' = note it even if it is not known: somebody has just seen that it is there
--
-- Returns 1 = noted, 0 = it was evicted, -1 = it is not known: whoever makes up digests leaves
-- nothing here.

if redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 0 end
if ARGV[2] ~= '1' and not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return -1 end
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('ZADD', KEYS[1], now, ARGV[1])
return 1
