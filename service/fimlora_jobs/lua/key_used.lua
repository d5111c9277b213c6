-- Note when a key was used, unless it is gone.
--
-- KEYS[1]   the key's hash
-- ARGV[1]   the time in ms
--
-- Returns nothing.

if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('HSET', KEYS[1], 'last_used_ms', ARGV[1])
end
