-- Delete the record of a job that has ended.
--
-- KEYS[1]   job hash
-- KEYS[2]   open jobs
-- KEYS[3]   all ids; KEYS[3]:owner has those of an owner
-- KEYS[4..] what is kept beside the job and goes with it
-- ARGV[1]   id
--
-- Returns 1 = gone, 0 = it has not ended, -1 = unknown.

local status = redis.call('HGET', KEYS[1], 'status')
if not status then return -1 end
if status ~= 'succeeded' and status ~= 'failed' and status ~= 'canceled' then return 0 end
local owner = redis.call('HGET', KEYS[1], 'owner') or ''
if owner ~= '' then redis.call('ZREM', KEYS[3] .. ':' .. owner, ARGV[1]) end
redis.call('DEL', KEYS[1], unpack(KEYS, 4))
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
return 1
