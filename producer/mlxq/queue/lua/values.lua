-- Values that anybody may have written: a stranger's type under a key, a number that is none.

local function is_a(kind, key)
  local found = redis.call('TYPE', key)
  found = type(found) == 'table' and found.ok or found
  return found == kind or found == 'none'
end

-- Like HINCRBY, which refuses a field that is no whole number.
local function count(key, field, amount)
  local reply = redis.pcall('HINCRBY', key, field, amount)
  if type(reply) == 'table' and reply.err then redis.call('HSET', key, field, amount) end
end
