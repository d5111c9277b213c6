-- Change a job's record if it is in the attempt and one of the states that the change speaks for.
--
-- KEYS[1]   job hash
-- KEYS[2]   open jobs; KEYS[2]:by_owner counts them
-- KEYS[3]   the job's events
-- KEYS[4]   counters
-- KEYS[5]   addresses that are told of the job's end
-- KEYS[6]   outbox
-- ARGV[1]   expected attempt; '' = any
-- ARGV[2]   states it may start from, |queued|running|
-- ARGV[3]   event as JSON; '' = none
-- ARGV[4]   lease in ms; '' = keep it, '0' = clear it
-- ARGV[5]   how many events are kept, about
-- ARGV[6]   upper bounds in seconds of the classes that durations are counted in, 1 3 10
-- ARGV[7..] field and value, in pairs
--
-- Returns {1 = done or 0 = refused, status, attempt}; {-1, '', ''} for an unknown job.
--
-- A change of a field raises the version, so that a reader can tell whether what it made of a
-- record is still what the record says.

local status = redis.call('HGET', KEYS[1], 'status')
if not status then return {-1, '', ''} end
local attempt = redis.call('HGET', KEYS[1], 'attempt')
local fits = (ARGV[1] == '' or ARGV[1] == attempt)
if not fits or not string.find(ARGV[2], '|' .. status .. '|', 1, true) then
  return {0, status, attempt}
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local text = string.format('%.0f', now)
redis.call('HSET', KEYS[1], 'updated_at', text)
if #ARGV > 6 then redis.call('HINCRBY', KEYS[1], 'version', 1) end
if ARGV[4] == '0' then
  redis.call('HDEL', KEYS[1], 'lease_until')
elseif ARGV[4] ~= '' then
  redis.call('HSET', KEYS[1], 'lease_until', string.format('%.0f', now + ARGV[4]))
end
for i = 7, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end

local function count_duration(seconds)
  redis.call('HINCRBY', KEYS[4], 'measured', 1)
  redis.call('HINCRBYFLOAT', KEYS[4], 'seconds', string.format('%.3f', seconds))
  for bound in string.gmatch(ARGV[6], '%d+') do
    if seconds <= tonumber(bound) then
      redis.call('HINCRBY', KEYS[4], 'within:' .. bound, 1)
      return
    end
  end
end

local after = redis.call('HGET', KEYS[1], 'status')
if after == 'running' and status == 'queued' then
  redis.call('HSET', KEYS[1], 'started_at', text)
end
if after == 'succeeded' or after == 'failed' or after == 'canceled' then
  redis.call('HSETNX', KEYS[1], 'finished_at', text)  -- unless a field says when
  local ended = redis.call('HGET', KEYS[1], 'id')
  if redis.call('HDEL', KEYS[2], ended) == 1 then
    local by_owner, owner = KEYS[2] .. ':by_owner', redis.call('HGET', KEYS[1], 'owner') or ''
    if redis.call('HINCRBY', by_owner, owner, -1) < 1 then redis.call('HDEL', by_owner, owner) end
  end
  for _, address in ipairs(redis.call('SMEMBERS', KEYS[5])) do
    redis.call('ZADD', KEYS[6], now, ended .. ' ' .. address)
  end
  redis.call('HINCRBY', KEYS[4], 'ended:' .. after, 1)
  local started, reused, kind =
    unpack(redis.call('HMGET', KEYS[1], 'started_at', 'statistics_from', 'kind'))
  local measured = (not reused or reused == '') and (not kind or kind == 'calibration')
  if after == 'succeeded' and started and measured then
    count_duration((now - started) / 1000)
  end
else
  local id, number = unpack(redis.call('HMGET', KEYS[1], 'id', 'attempt'))
  redis.call('HSET', KEYS[2], id, after .. ' ' .. number)
end
if ARGV[3] ~= '' then
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[5], '*', 'event', ARGV[3])
end
return {1, after, redis.call('HGET', KEYS[1], 'attempt')}
