-- Take back one of the requests that share a job.
--
-- KEYS[1]  job hash
--
-- Returns 1 when others still want the open job; 0 when nobody does: from then on nobody can
-- join it.

local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'queued' and status ~= 'running' then return 0 end
local requests = tonumber(redis.call('HGET', KEYS[1], 'requests') or '1')
if requests < 1 then return 0 end
redis.call('HSET', KEYS[1], 'requests', requests - 1)
redis.call('HINCRBY', KEYS[1], 'version', 1)
return requests > 1 and 1 or 0
