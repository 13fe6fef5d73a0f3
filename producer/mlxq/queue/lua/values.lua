-- Values that anybody may have written: a stranger's type under a key, a number that is none.

local BROKEN = 'mlxq:broken'
local BROKEN_TTL_S = 30 * 24 * 3600

local function type_of(key)
  local found = redis.call('TYPE', key)
  return type(found) == 'table' and found.ok or found
end

local function is_a(kind, key)
  local found = type_of(key)
  return found == kind or found == 'none'
end

local function set_aside(key)
  redis.call('RENAME', key, BROKEN .. ':' .. key)
  redis.call('EXPIRE', BROKEN .. ':' .. key, BROKEN_TTL_S)
end

-- Notes what a key holds, for the next worker that looks to log.
local function note_broken(kind, key, what_became_of_it)
  if not is_a('hash', BROKEN) then set_aside(BROKEN) end
  if redis.call('HLEN', BROKEN) >= 1000 then return end
  redis.call('HSET', BROKEN, key, kind .. ' ' .. type_of(key) .. ' ' .. what_became_of_it)
  redis.call('EXPIRE', BROKEN, BROKEN_TTL_S)
end

-- What only RQ or mlxq writes makes room if it is of another type: it is moved out of the way, where people find it.
local function make_room(kind, key)
  if is_a(kind, key) then return end
  note_broken(kind, key, 'moved')
  set_aside(key)
end

-- What belongs to a single job or batch stays where it is, and counts as gone.
local function is_ours(kind, key)
  if is_a(kind, key) then return true end
  note_broken(kind, key, 'kept')
  return false
end

-- Like HINCRBY, which refuses a field that is no whole number.
local function count(key, field, amount)
  local reply = redis.pcall('HINCRBY', key, field, amount)
  if type(reply) == 'table' and reply.err then redis.call('HSET', key, field, amount) end
end
