-- Delete the record of a job that has ended, and every key that names it.
--
-- KEYS[1]   job hash
-- KEYS[2]   open jobs
-- KEYS[3]   all ids; KEYS[3]:owner has those of an owner
-- KEYS[4]   deadlines
-- KEYS[5]   jobs of which an attempt was missing
-- KEYS[6]   outbox
-- KEYS[7]   failed tries of the outbox
-- KEYS[8]   addresses that are told of the job's end
-- KEYS[9]   keys by which others find the job
-- KEYS[10..] what else is kept beside the job and goes with it
-- ARGV[1]   id
--
-- Returns 1 = gone, 0 = it has not ended, -1 = unknown.

local status = redis.call('HGET', KEYS[1], 'status')
if not status then return -1 end
if status ~= 'succeeded' and status ~= 'failed' and status ~= 'canceled' then return 0 end
local owner = redis.call('HGET', KEYS[1], 'owner') or ''
if owner ~= '' then redis.call('ZREM', KEYS[3] .. ':' .. owner, ARGV[1]) end
for _, address in ipairs(redis.call('SMEMBERS', KEYS[8])) do
  local entry = ARGV[1] .. ' ' .. address
  redis.call('ZREM', KEYS[6], entry)
  redis.call('HDEL', KEYS[7], entry)
end
local function names_it(value)  -- alone, or behind what an idempotency key stands for
  return value and (value == ARGV[1] or string.sub(value, -#ARGV[1] - 1) == ' ' .. ARGV[1])
end
for _, key in ipairs(redis.call('SMEMBERS', KEYS[9])) do
  local kind = redis.call('TYPE', key).ok
  if kind == 'zset' then
    redis.call('ZREM', key, ARGV[1])
  elseif kind == 'string' and names_it(redis.call('GET', key)) then
    redis.call('DEL', key)
  end
end
redis.call('DEL', KEYS[1], unpack(KEYS, 8))
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('SREM', KEYS[5], ARGV[1])
return 1
