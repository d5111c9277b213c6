-- Let a job be found by a key, for as long as it is on record.
--
-- KEYS[1]  job hash
-- KEYS[2]  keys by which others find the job
-- KEYS[3]  the key
-- ARGV[1]  id
-- ARGV[2]  'newest' = the key names this job alone, 'all' = this one too, 'as it is' = the key is
--          there, and goes with the job
--
-- Returns 1; 0 when the job is gone.

if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('SADD', KEYS[2], KEYS[3])
if ARGV[2] == 'all' then
  redis.call('ZADD', KEYS[3], 0, ARGV[1])
elseif ARGV[2] == 'newest' then
  redis.call('SET', KEYS[3], ARGV[1])
end
return 1
