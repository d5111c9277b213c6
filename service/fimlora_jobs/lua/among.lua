-- Which of some jobs are of some statuses, and of a kind: what they are is not sent.
--
-- KEYS     job hashes
-- ARGV[1]  kind; empty for any. A record that does not say it is a calibration's
-- ARGV[2]  statuses, each between spaces; empty for any
--
-- Returns places among the keys, the first being 0.

local found = {}
for i, key in ipairs(KEYS) do
  local status, kind = unpack(redis.call('HMGET', key, 'status', 'kind'))
  if not kind or kind == '' then kind = 'calibration' end
  local is_one = status and (ARGV[2] == '' or string.find(ARGV[2], ' ' .. status .. ' ', 1, true))
  if is_one and (ARGV[1] == '' or ARGV[1] == kind) then found[#found + 1] = i - 1 end
end
return found
