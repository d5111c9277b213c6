-- Move an attempt behind the last one of high priority, or to the front if that has gone.
--
-- KEYS[1]  queue
-- KEYS[2]  what names the last one of high priority
-- ARGV[1]  id of the attempt in the queue
--
-- Returns 1; 0 if the attempt waits no more.

if not redis.call('LPOS', KEYS[1], ARGV[1], 'RANK', -1) then return 0 end
local last = redis.call('GET', KEYS[2])
-- First what needs memory: a server that is full refuses it, and the attempt stays in line.
redis.call('SET', KEYS[2], ARGV[1])
redis.call('LREM', KEYS[1], -1, ARGV[1])
if not last or redis.call('LINSERT', KEYS[1], 'AFTER', last, ARGV[1]) < 1 then
  redis.call('LPUSH', KEYS[1], ARGV[1])
end
return 1
