-- Claim the first run that is neither finished nor claimed by somebody who is alive.
--
-- KEYS[1]   job hash
-- KEYS[2]   results by run
-- KEYS[3]   claims by run: until when, a space, by whom
-- ARGV[1]   who claims
-- ARGV[2]   ms for which the claim holds unless it is held on
-- ARGV[3..] runs, in the order they are wanted
--
-- Returns the run; nil if there is none, or the job is gone.

if redis.call('EXISTS', KEYS[1]) == 0 then return false end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 3, #ARGV do
  local claim = redis.call('HGET', KEYS[3], ARGV[i])
  local is_free = not claim or tonumber(string.match(claim, '^%d+')) <= now
  if is_free and redis.call('HEXISTS', KEYS[2], ARGV[i]) == 0 then
    local until_ms = string.format('%.0f', now + ARGV[2])
    redis.call('HSET', KEYS[3], ARGV[i], until_ms .. ' ' .. ARGV[1])
    return ARGV[i]
  end
end
return false
