--- @include "when_full"
-- Marks a running job as cancelled, as rq.job.Job.cancel does, so that its worker drops its rows.
-- KEYS: job hash, its executions, RQ's registries of started and of cancelled jobs, queue list.
-- ARGV: job id, now (Unix s).  Returns 0 if it isn't running.
local job, executions, started, cancelled, queue = unpack(KEYS)
if redis.call('HGET', job, 'status') ~= 'started' then return 0 end
pass_when_full()
redis.call('HSET', job, 'status', 'canceled')
redis.call('LREM', queue, 1, ARGV[1])
for _, execution in ipairs(redis.call('ZRANGE', executions, 0, -1)) do
  redis.call('ZREM', started, ARGV[1] .. ':' .. execution)
end
redis.call('ZADD', cancelled, ARGV[2], ARGV[1])
return 1
