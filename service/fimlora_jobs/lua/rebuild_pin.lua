-- Put a pin back, unless what is there is as new.
--
-- KEYS[1]   what it stands for and stood for, the newest first
-- ARGV[1..] entries, the newest first
--
-- Returns 1; 0 when nothing changed.

local newest = redis.call('LINDEX', KEYS[1], 0)
if newest and cjson.decode(newest).pinned_at_ms >= cjson.decode(ARGV[1]).pinned_at_ms then
  return 0
end
redis.call('DEL', KEYS[1])
redis.call('RPUSH', KEYS[1], unpack(ARGV))
return 1
