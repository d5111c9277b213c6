-- Let one more request share a job.
--
-- KEYS[1]  job hash
--
-- Returns 1 when it does; 0 when the job has ended, or was given up by all who asked for it.

local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'queued' and status ~= 'running' then return 0 end
if redis.call('HGET', KEYS[1], 'requests') == '0' then return 0 end
redis.call('HINCRBY', KEYS[1], 'requests', 1)
redis.call('HINCRBY', KEYS[1], 'version', 1)
return 1
