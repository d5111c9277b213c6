-- Keep the result of a run, unless there is one.
--
-- KEYS[1]  job hash
-- KEYS[2]  results by run
-- KEYS[3]  claims by run
-- ARGV[1]  run
-- ARGV[2]  result as JSON
--
-- Returns 1; 0 when there was one, and nothing changed; -1 when the job is gone.

if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
redis.call('HDEL', KEYS[3], ARGV[1])
return redis.call('HSETNX', KEYS[2], ARGV[1], ARGV[2])
