-- Put a pin back, unless what is there is as new.
--
-- KEYS[1]   what it stands for and stood for, the newest first
-- KEYS[2]   all pins by owner, name and tag
-- ARGV[1]   the pin among all pins
-- ARGV[2..] entries, the newest first
--
-- Returns 1; 0 when nothing changed.

redis.call('ZADD', KEYS[2], 0, ARGV[1])
local newest = redis.call('LINDEX', KEYS[1], 0)
if newest and cjson.decode(newest).pinned_at_ms >= cjson.decode(ARGV[2]).pinned_at_ms then
  return 0
end
redis.call('DEL', KEYS[1])
redis.call('RPUSH', KEYS[1], unpack(ARGV, 2))
return 1
