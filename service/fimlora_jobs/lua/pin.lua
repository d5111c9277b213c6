-- Let a pin stand for a result; repeating that changes nothing.
--
-- KEYS[1]   what it stands for and stood for, the newest first
-- KEYS[2]   all pins by owner, name and tag
-- ARGV[1]   digest of the result
-- ARGV[2]   id of the key that is used
-- ARGV[3]   how many entries are kept
-- ARGV[4]   the pin among all pins
--
-- Returns 1 = the pin is new, 0 = it was there.

redis.call('ZADD', KEYS[2], 0, ARGV[4])
local newest = redis.call('LINDEX', KEYS[1], 0)
if newest and cjson.decode(newest).digest == ARGV[1] then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- The number by hand: cjson may write it with an exponent.
redis.call('LPUSH', KEYS[1], string.format('{"digest":%s,"pinned_at_ms":%.0f,"by":%s}',
           cjson.encode(ARGV[1]), now, cjson.encode(ARGV[2])))
redis.call('LTRIM', KEYS[1], 0, ARGV[3] - 1)
return newest and 0 or 1
