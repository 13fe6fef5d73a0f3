--- @include "when_full"
-- Says that a worker lives and what it does, as rq.worker.BaseWorker's heartbeat and set_state do.
-- KEYS: the worker, its executions.  ARGV: now (RQ's text), state, for how long that holds (s).
-- Returns 0 if there was no entry: it is then to be written anew.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
pass_when_full()
redis.call('HSET', KEYS[1], 'last_heartbeat', ARGV[1], 'state', ARGV[2])
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ARGV[3]) end
return 1
