-- Take what is due: nobody else is given it for a while.
--
-- KEYS[1]   outbox
-- ARGV[1]   now
-- ARGV[2]   until when it is taken
-- ARGV[3]   how many at most
-- ARGV[4]   how many of one origin at most, with those that are being called already
-- ARGV[5]   how many entries to look at
-- ARGV[6..] origin and how many of it are being called already, in pairs
--
-- Returns the entries, the longest due first. Entries of an origin that has enough are passed
-- over, so that a receiver that is slow keeps only its own waiting.

local calling, taken = {}, {}
for i = 6, #ARGV, 2 do calling[ARGV[i]] = tonumber(ARGV[i + 1]) end

local function origin_of(entry)
  local scheme, place = string.match(entry, '^%S+ (%a+)://([^/?#]+)')
  local port = scheme == 'https' and ':443' or ':80'
  place = string.lower(place)
  if not string.find(place, ':%d+$') then place = place .. port end
  return scheme .. '://' .. place
end

local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[5])
for _, entry in ipairs(due) do
  if #taken >= tonumber(ARGV[3]) then break end
  local origin = origin_of(entry)
  local n = calling[origin] or 0
  if n < tonumber(ARGV[4]) then
    calling[origin] = n + 1
    taken[#taken + 1] = entry
    redis.call('ZADD', KEYS[1], ARGV[2], entry)
  end
end
return taken
