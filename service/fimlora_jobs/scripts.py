"""What Redis does in one step: scripts that check a job record and write it, or refuse.

Every change of a field raises the record's version, so that a reader can tell whether what it made of
a record is still what the record says.
"""

MAX_EVENTS = 5_000
# Upper bounds of the classes that durations are counted in.
DURATION_BOUNDS_S = (1, 3, 10, 30, 60, 180, 600, 1800, 3600, 10_800)

# KEYS: job hash, open jobs, events stream, tallies, addresses of webhooks, outbox.
# ARGV: expected attempt ('' = any), states it may start from, event JSON ('' = none),
#       lease in ms ('' = keep, '0' = clear), then field/value pairs to set.
# Returns {1 = done or 0 = refused, status, attempt}, or {-1} for an unknown job.
CHANGE = """
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
if #ARGV > 4 then redis.call('HINCRBY', KEYS[1], 'version', 1) end
if ARGV[4] == '0' then redis.call('HDEL', KEYS[1], 'lease_until')
elseif ARGV[4] ~= '' then
  redis.call('HSET', KEYS[1], 'lease_until', string.format('%.0f', now + ARGV[4]))
end
for i = 5, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
local after = redis.call('HGET', KEYS[1], 'status')
if after == 'running' and status == 'queued' then
  redis.call('HSET', KEYS[1], 'started_at', text)
end
if after == 'succeeded' or after == 'failed' or after == 'canceled' then
  redis.call('HSET', KEYS[1], 'finished_at', text)
  local ended = redis.call('HGET', KEYS[1], 'id')
  redis.call('HDEL', KEYS[2], ended)
  for _, address in ipairs(redis.call('SMEMBERS', KEYS[5])) do
    redis.call('ZADD', KEYS[6], now, ended .. ' ' .. address)
  end
  redis.call('HINCRBY', KEYS[4], 'ended:' .. after, 1)
  local started, reused = unpack(redis.call('HMGET', KEYS[1], 'started_at', 'statistics_from'))
  if after == 'succeeded' and started and (not reused or reused == '') then
    local seconds = (now - started) / 1000
    redis.call('HINCRBY', KEYS[4], 'measured', 1)
    redis.call('HINCRBYFLOAT', KEYS[4], 'seconds', string.format('%.3f', seconds))
    for bound in string.gmatch('DURATION_BOUNDS', '%d+') do
      if seconds <= tonumber(bound) then
        redis.call('HINCRBY', KEYS[4], 'within:' .. bound, 1)
        break
      end
    end
  end
else
  local id, number = unpack(redis.call('HMGET', KEYS[1], 'id', 'attempt'))
  redis.call('HSET', KEYS[2], id, after .. ' ' .. number)
end
if ARGV[3] ~= '' then redis.call('XADD', KEYS[3], 'MAXLEN', '~', MAX_EVENTS, '*', 'event', ARGV[3]) end
return {1, after, redis.call('HGET', KEYS[1], 'attempt')}
""".replace("MAX_EVENTS", str(MAX_EVENTS)).replace(
    "DURATION_BOUNDS", " ".join(map(str, DURATION_BOUNDS_S))
)

# KEYS: job hash, open jobs, all ids, events stream, deadlines, figures, and the key that names the
# job of equal requests, if they are to find this one. ARGV: id, event, the id which that key must
# still hold ('' = none), ms until the deadline ('' = none), the figure that counts it ('' = none),
# then fields. Returns 1 = done, 0 = was there, -1 = another job came first.
CREATE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
if KEYS[7] then
  if (redis.call('GET', KEYS[7]) or '') ~= ARGV[3] then return -1 end
  redis.call('SET', KEYS[7], ARGV[1], 'EX', SHARED_TTL_S)
end
local time = redis.call('TIME')
local ms = time[1] * 1000 + math.floor(time[2] / 1000)
local now = string.format('%.0f', ms)
redis.call('HSET', KEYS[1], 'id', ARGV[1], 'status', 'queued', 'attempt', '1',
           'failures', '0', 'version', '1', 'requests', '1', 'created_at', now,
           'updated_at', now)
if ARGV[4] ~= '' then
  local due = string.format('%.0f', ms + ARGV[4])
  redis.call('HSET', KEYS[1], 'deadline_at', due)
  redis.call('ZADD', KEYS[5], due, ARGV[1])
end
redis.call('HSET', KEYS[1], unpack(ARGV, 6))
if ARGV[5] ~= '' then redis.call('HINCRBY', KEYS[6], ARGV[5], 1) end
redis.call('HSET', KEYS[2], ARGV[1], 'queued 1')
redis.call('ZADD', KEYS[3], 0, ARGV[1])
redis.call('XADD', KEYS[4], '*', 'event', ARGV[2])
return 1
""".replace("SHARED_TTL_S", str(7 * 24 * 3600))

# KEYS: job hash. Returns 1 when one more request shares the job, 0 when it has ended or was
# given up by all who asked for it.
JOIN = """
local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'queued' and status ~= 'running' then return 0 end
if redis.call('HGET', KEYS[1], 'requests') == '0' then return 0 end
redis.call('HINCRBY', KEYS[1], 'requests', 1)
redis.call('HINCRBY', KEYS[1], 'version', 1)
return 1
"""

# KEYS: job hash. Returns 1 when others still want the open job, 0 when nobody does: from then
# on nobody can join it.
LEAVE = """
local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'queued' and status ~= 'running' then return 0 end
local requests = tonumber(redis.call('HGET', KEYS[1], 'requests') or '1')
if requests < 1 then return 0 end
redis.call('HSET', KEYS[1], 'requests', requests - 1)
redis.call('HINCRBY', KEYS[1], 'version', 1)
return requests > 1 and 1 or 0
"""

# KEYS: job hash, its events, open jobs, all ids. ARGV: id. Returns 1 = gone,
# 0 = still open, -1 = unknown.
DELETE = """
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return -1 end
if status ~= 'succeeded' and status ~= 'failed' and status ~= 'canceled' then return 0 end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
return 1
"""
