--- @include "values"
-- How a queue stands. Changes nothing.
-- KEYS: queue, its live jobs, delayed jobs, leases, failed jobs.  ARGV: how the keys of jobs begin.
-- Returns how many wait, how many live ones do, are delayed, run and have failed, -1 where the key has another type; and
-- when the job that waits in front was enqueued, or ''.
local function size_of(kind, command, key) return is_a(kind, key) and redis.call(command, key) or -1 end

local function first_of(list) return is_a('list', list) and redis.call('LINDEX', list, 0) end

local function enqueued_at()
  local first = first_of(KEYS[1]) or first_of(KEYS[2])
  local job = first and ARGV[1] .. first
  return job and is_a('hash', job) and redis.call('HGET', job, 'enqueued_at') or ''
end

return {size_of('list', 'LLEN', KEYS[1]), size_of('list', 'LLEN', KEYS[2]), size_of('zset', 'ZCARD', KEYS[3]),
  size_of('zset', 'ZCARD', KEYS[4]), size_of('zset', 'ZCARD', KEYS[5]), enqueued_at()}
