-- Note that somebody looks for lost jobs, and tell since when that has gone on without a gap.
--
-- KEYS[1]  looks: when the last one was, and when they began again after a gap
-- ARGV[1]  ms between two looks beyond which there was a gap
--
-- Returns {now, when looks began again}; 0 for never. A clock that was set back is a gap, too.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local text = string.format('%.0f', now)
local last = tonumber(redis.call('HGET', KEYS[1], 'last'))
if last and (now - last > tonumber(ARGV[1]) or now < last) then
  redis.call('HSET', KEYS[1], 'again', text)
end
redis.call('HSET', KEYS[1], 'last', text)
return {text, redis.call('HGET', KEYS[1], 'again') or '0'}
