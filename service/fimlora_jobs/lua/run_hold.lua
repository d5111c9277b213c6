-- Hold on to what somebody has claimed, or give it back.
--
-- KEYS[1]  claims by run: until when, a space, by whom
-- ARGV[1]  who
-- ARGV[2]  ms for which the claims hold from now; '0' = give them back
--
-- Returns how many claims there were. One that ran out and that nobody else has taken is held again.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local n = 0
local claims = redis.call('HGETALL', KEYS[1])
for i = 1, #claims, 2 do
  if string.match(claims[i + 1], '^%d+ (.*)$') == ARGV[1] then
    n = n + 1
    if ARGV[2] == '0' then
      redis.call('HDEL', KEYS[1], claims[i])
    else
      local until_ms = string.format('%.0f', now + ARGV[2])
      redis.call('HSET', KEYS[1], claims[i], until_ms .. ' ' .. ARGV[1])
    end
  end
end
return n
