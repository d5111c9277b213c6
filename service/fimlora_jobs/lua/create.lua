-- Put a queued job on record, unless it is there.
--
-- KEYS[1]   job hash
-- KEYS[2]   open jobs
-- KEYS[3]   all ids
-- KEYS[4]   the job's events
-- KEYS[5]   deadlines
-- KEYS[6]   figures
-- KEYS[7]   keys by which others find the job
-- KEYS[8]   what names the job of equal requests; left out if they are not to find this one
-- ARGV[1]   id
-- ARGV[2]   event as JSON
-- ARGV[3]   the id that KEYS[8] must still hold; '' = none
-- ARGV[4]   seconds for which KEYS[8] then holds this one
-- ARGV[5]   ms until the deadline; '' = none
-- ARGV[6]   the figure that counts the job; '' = none
-- ARGV[7]   names of the fields to answer, with spaces between
-- ARGV[8]   how many jobs may be open; '0' = any number
-- ARGV[9]   how many of one owner
-- ARGV[10..] field and value, in pairs
--
-- Returns the values of the fields in ARGV[7]; nil when KEYS[8] holds another id;
-- -1 when too many jobs are open, -2 when too many of the owner's, whom a field names. Open jobs
-- are counted by owner in KEYS[2]:by_owner.
--
-- A job with an owner is also in a list of all ids of that owner, KEYS[3]:owner.

local function answer()
  local names = {}
  for name in string.gmatch(ARGV[7], '%S+') do names[#names + 1] = name end
  return redis.call('HMGET', KEYS[1], unpack(names))
end

if redis.call('EXISTS', KEYS[1]) == 1 then return answer() end
if KEYS[8] and (redis.call('GET', KEYS[8]) or '') ~= ARGV[3] then return false end

local by_owner, owner = KEYS[2] .. ':by_owner', ''
for i = 10, #ARGV, 2 do
  if ARGV[i] == 'owner' then owner = ARGV[i + 1] end
end
local most, most_of_owner = tonumber(ARGV[8]), tonumber(ARGV[9])
if most > 0 and redis.call('HLEN', KEYS[2]) >= most then return -1 end
if most_of_owner > 0 and tonumber(redis.call('HGET', by_owner, owner) or '0') >= most_of_owner then
  return -2
end
if KEYS[8] then
  redis.call('SET', KEYS[8], ARGV[1], 'EX', ARGV[4])
  redis.call('SADD', KEYS[7], KEYS[8])
end

local time = redis.call('TIME')
local ms = time[1] * 1000 + math.floor(time[2] / 1000)
local now = string.format('%.0f', ms)
redis.call('HSET', KEYS[1], 'id', ARGV[1], 'status', 'queued', 'attempt', '1',
           'failures', '0', 'version', '1', 'requests', '1', 'created_at', now,
           'updated_at', now)
if ARGV[5] ~= '' then
  local due = string.format('%.0f', ms + ARGV[5])
  redis.call('HSET', KEYS[1], 'deadline_at', due)
  redis.call('ZADD', KEYS[5], due, ARGV[1])
end
redis.call('HSET', KEYS[1], unpack(ARGV, 10))
if ARGV[6] ~= '' then redis.call('HINCRBY', KEYS[6], ARGV[6], 1) end
redis.call('HSET', KEYS[2], ARGV[1], 'queued 1')
redis.call('HINCRBY', by_owner, owner, 1)
redis.call('ZADD', KEYS[3], 0, ARGV[1])
if owner ~= '' then redis.call('ZADD', KEYS[3] .. ':' .. owner, 0, ARGV[1]) end
redis.call('XADD', KEYS[4], '*', 'event', ARGV[2])
return answer()
