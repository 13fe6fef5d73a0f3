--- @include "values"
-- Removes a batch's ids from a queue in one pass, so that cancelling n jobs is not n scans of the queue.
-- KEYS: queue list.  ARGV: prefix of the job ids, their length.  Returns how many ids were taken out.
make_room('list', KEYS[1])
local prefix, length = ARGV[1], tonumber(ARGV[2])
local kept, taken = {}, 0
for _, id in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do
  if #id == length and string.sub(id, 1, #prefix) == prefix then taken = taken + 1 else kept[#kept + 1] = id end
end
if taken == 0 then return 0 end
redis.call('DEL', KEYS[1])
for first = 1, #kept, 5000 do  -- unpack() has a limit of about 8,000 values
  redis.call('RPUSH', KEYS[1], unpack(kept, first, math.min(first + 4999, #kept)))
end
return taken
