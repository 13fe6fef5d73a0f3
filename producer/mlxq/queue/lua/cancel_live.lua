--- @include "values"
--- @include "when_full"
-- Nobody waits for a live job any more: it goes if it waits or has ended, and is marked as cancelled if it runs, as
-- rq.job.Job.cancel does, so that its worker drops its rows.
-- KEYS: job hash, its executions, its results, its stream, RQ's registries of started and of cancelled jobs, the queue's
-- live jobs, those that are delayed.  ARGV: job id, now (Unix s).  Returns 1 if it runs.
local job, executions, results, stream, started, cancelled, live, delayed = unpack(KEYS)
local id = ARGV[1]
pass_when_full()
redis.call('DEL', stream)
if not is_ours('hash', job) or redis.call('HGET', job, 'status') ~= 'started' then
  if is_a('list', live) then redis.call('LREM', live, 1, id) end
  if is_a('zset', delayed) then redis.call('ZREM', delayed, id) end
  redis.call('DEL', job, results)
  return 0
end
make_room('zset', executions)
make_room('zset', started)
make_room('zset', cancelled)
redis.call('HSET', job, 'status', 'canceled')
for _, execution in ipairs(redis.call('ZRANGE', executions, 0, -1)) do
  redis.call('ZREM', started, id .. ':' .. execution)
end
redis.call('ZADD', cancelled, ARGV[2], id)
return 1
