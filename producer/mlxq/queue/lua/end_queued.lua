--- @include "ended"
--- @include "when_full"
-- Ends jobs that still wait, each with its answer: those that RQ still calls queued.
-- KEYS: batch hash, batch jobs, batch events, RQ's registry of cancelled jobs, then per job its hash and its results.
-- ARGV: now (Unix s), now (RQ's text), job ttl (s), batch ttl (s), then per job its id and its answer.
-- Returns how many jobs it ended.
local batch = {hash = KEYS[1], jobs = KEYS[2], events = KEYS[3], ttl = tonumber(ARGV[4])}
local registry, now, now_text, job_ttl = KEYS[4], ARGV[1], ARGV[2], ARGV[3]
local num_ended = 0
pass_when_full()
make_room('zset', registry)
for i = 5, #KEYS, 2 do
  local job, results, id, answer = KEYS[i], KEYS[i + 1], ARGV[i], ARGV[i + 1]
  make_room('stream', results)
  local status, before = unpack(redis.call('HMGET', job, 'status', 'mlxq_outcome'))
  if status == 'queued' then
    redis.call('HSET', job, 'status', 'canceled', 'ended_at', now_text, 'mlxq_outcome', 'cancelled')
    redis.call('EXPIRE', job, job_ttl)
    redis.call('XADD', results, 'MAXLEN', 10, '*', 'type', '3', 'worker_name', '', 'return_value', answer)
    redis.call('EXPIRE', results, job_ttl)
    redis.call('ZADD', registry, now, id)
    record_end(batch, {job = id, outcome = 'cancelled', before = before})
    num_ended = num_ended + 1
  end
end
redis.call('ZREMRANGEBYSCORE', registry, '-inf', now - job_ttl)  -- RQ itself never prunes this registry
return num_ended
