-- Have an address told of a job's end: at once when the job has ended.
--
-- KEYS[1]  job hash
-- KEYS[2]  its addresses
-- KEYS[3]  outbox
-- ARGV[1]  id
-- ARGV[2]  address
--
-- Returns 1; 0 for an unknown job.

local status, ended = unpack(redis.call('HMGET', KEYS[1], 'status', 'finished_at'))
if not status then return 0 end
local is_new = redis.call('SADD', KEYS[2], ARGV[2]) == 1
if ended and is_new then redis.call('ZADD', KEYS[3], ended, ARGV[1] .. ' ' .. ARGV[2]) end
return 1
