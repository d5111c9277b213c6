-- Count the attempts that wait up to the last one of high priority.
--
-- KEYS[1]  queue
-- KEYS[2]  what names the last one of high priority
--
-- Returns how many.

local last = redis.call('GET', KEYS[2])
local place = last and redis.call('LPOS', KEYS[1], last)
return place and place + 1 or 0
