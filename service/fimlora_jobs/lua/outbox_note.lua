-- Put a try to deliver on record: the notice is due again, or settled.
--
-- KEYS[1]  outbox
-- KEYS[2]  failed tries by entry
-- KEYS[3]  job hash
-- KEYS[4]  the job's tries
-- ARGV[1]  entry
-- ARGV[2]  when it is due again; '' = it is settled
-- ARGV[3]  the try as JSON
-- ARGV[4]  how many tries of a job are kept
--
-- Returns 1. A notice that went with its job in the meantime is not brought back, nor is the job.

if redis.call('EXISTS', KEYS[3]) == 1 then
  redis.call('LPUSH', KEYS[4], ARGV[3])
  redis.call('LTRIM', KEYS[4], 0, ARGV[4] - 1)
end
if ARGV[2] == '' then
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('HDEL', KEYS[2], ARGV[1])
elseif redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
  redis.call('HINCRBY', KEYS[2], ARGV[1], 1)
end
return 1
