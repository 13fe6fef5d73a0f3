--- @include "when_full"
-- Says that a worker lives and what it does, as rq.worker.BaseWorker's heartbeat and set_state do.
-- KEYS: the worker, its executions.
-- ARGV: now (RQ's text), state, for how long that holds (s), its machine, for how long it has had jobs in hand since the
-- last time (s), the model that it answers with.
-- Returns 0 if there was no entry: it is then to be written anew.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
pass_when_full()
redis.call('HSET', KEYS[1], 'last_heartbeat', ARGV[1], 'state', ARGV[2], 'mlxq_machine', ARGV[4],
  'mlxq_model', ARGV[6])
redis.pcall('HINCRBYFLOAT', KEYS[1], 'total_working_time', ARGV[5]) -- unless somebody made it something else
redis.call('EXPIRE', KEYS[1], ARGV[3])
-- By these a lost claim is found after a long absence, too.
if redis.call('TTL', KEYS[2]) < tonumber(ARGV[3]) then redis.call('EXPIRE', KEYS[2], ARGV[3]) end
return 1
