-- Put the record of a job that has succeeded back, unless there is one.
--
-- KEYS[1]   job hash
-- KEYS[2]   all ids; KEYS[2]:owner has those of an owner
-- KEYS[3]   the job's events
-- KEYS[4]   keys by which others find the job
-- KEYS[5]   whose the result is
-- ARGV[1]   id
-- ARGV[2]   event as JSON
-- ARGV[3]   when the job ended, in ms
-- ARGV[4]   owner
-- ARGV[5]   how many of the keys after KEYS[5] name the newest of equal jobs; the others name all
-- ARGV[6..] field and value, in pairs
--
-- Returns 1; 0 when the job is on record, and nothing changed. A key that names the newest job is
-- left alone where it names a newer one: ids sort by time.

if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
-- First what could be refused: nothing is rolled back.
redis.call('DEL', KEYS[3])
redis.call('XADD', KEYS[3], ARGV[3] .. '-0', 'event', ARGV[2])
redis.call('SADD', KEYS[5], ARGV[4])
redis.call('PERSIST', KEYS[5])
redis.call('HSET', KEYS[1], 'id', ARGV[1], unpack(ARGV, 6))
redis.call('ZADD', KEYS[2], 0, ARGV[1])
if ARGV[4] ~= '' then redis.call('ZADD', KEYS[2] .. ':' .. ARGV[4], 0, ARGV[1]) end
for i = 6, #KEYS do
  if i - 5 > tonumber(ARGV[5]) then
    redis.call('SADD', KEYS[4], KEYS[i])
    redis.call('ZADD', KEYS[i], 0, ARGV[1])
  else
    local named = redis.call('GET', KEYS[i])
    if not named or named < ARGV[1] then
      redis.call('SADD', KEYS[4], KEYS[i])
      redis.call('SET', KEYS[i], ARGV[1])
    end
  end
end
return 1
