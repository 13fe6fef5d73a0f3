--- @include "values"
-- How a queue stands. Changes nothing.
-- KEYS: queue, delayed jobs, leases, failed jobs.  ARGV: how the keys of jobs begin.
-- Returns how many wait, are delayed, run and have failed, -1 where the key has another type; and when the job that
-- waits in front was enqueued, or ''.
local function size_of(kind, command, key) return is_a(kind, key) and redis.call(command, key) or -1 end

local function enqueued_at()
  local first = is_a('list', KEYS[1]) and redis.call('LINDEX', KEYS[1], 0)
  local job = first and ARGV[1] .. first
  return job and is_a('hash', job) and redis.call('HGET', job, 'enqueued_at') or ''
end

return {size_of('list', 'LLEN', KEYS[1]), size_of('zset', 'ZCARD', KEYS[2]), size_of('zset', 'ZCARD', KEYS[3]),
  size_of('zset', 'ZCARD', KEYS[4]), enqueued_at()}
