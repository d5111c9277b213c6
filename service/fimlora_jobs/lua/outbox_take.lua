-- Take what is due: nobody else is given it for a while.
--
-- KEYS[1]  outbox
-- ARGV[1]  now
-- ARGV[2]  until when it is taken
-- ARGV[3]  how many at most
--
-- Returns the entries.

local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[3])
for _, entry in ipairs(due) do redis.call('ZADD', KEYS[1], ARGV[2], entry) end
return due
