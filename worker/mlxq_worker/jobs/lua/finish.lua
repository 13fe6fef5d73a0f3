--- @include "common"
--- @include "ended"
--- @include "dependents"
-- Ends one job if this execution still owns it: the first writer wins and nobody else writes anything.
-- ARGV[3] is the output line and ARGV[4] RQ's exc_string, both in RQ's encoding, or empty.
-- p.outcome is finished, failed or cancelled; p.status is RQ's word for it.
-- Whoever waited for the job is enqueued, too. The first write takes something away: from then on Redis lets the script
-- go on to its end, however full it is.
-- Returns 1, or 0 if it was refused. Saying it again, because the first reply was lost, changes nothing and returns 1.
local RESULT_TYPES = {finished = 1, failed = 2, cancelled = 3} -- rq.results.Result.Type

local key, results = job_key(p.job), rq .. ':results:' .. p.job
local dependents, dependencies = key .. ':dependents', rq .. ':job::' .. p.job .. ':dependencies'
local status, outcome = p.status, p.outcome

make_room('set', dependents)
if not is_ours('hash', key) then
  close_execution(p.queue, p.job, p.execution, p.worker)
  return 0
end
if redis.call('HGET', key, 'mlxq_ended_by') == p.execution then return 1 end
if not holds_lease(p.queue, p.job, p.execution) then
  -- Job.cancel ends the lease but leaves the execution. Nobody else writes that job's answer, so we do.
  local canceled = redis.call('HGET', key, 'status') == 'canceled'
    and redis.call('EXISTS', execution_key(p.job, p.execution)) == 1
  if not canceled then
    close_execution(p.queue, p.job, p.execution, p.worker)
    return 0
  end
  status, outcome = 'canceled', 'cancelled'
end

local function expire(name, ttl)
  if ttl < 0 then redis.call('PERSIST', name) else redis.call('EXPIRE', name, ttl) end
end

local function write_result(ttl)
  local entry = {'type', RESULT_TYPES[outcome], 'worker_name', p.worker, 'execution_id', p.execution,
    'execution_started_at', p.started, 'execution_ended_at', p.now}
  if ARGV[3] ~= '' then table.insert(entry, 'return_value') table.insert(entry, ARGV[3]) end
  if ARGV[4] ~= '' then table.insert(entry, 'exc_string') table.insert(entry, ARGV[4]) end
  make_room('stream', results)
  redis.call('XADD', results, 'MAXLEN', '~', 10, '*', unpack(entry))
  expire(results, ttl)
end

local function register(ttl)
  local now = tonumber(p.now)
  if status == 'canceled' then
    local registry = rq .. ':canceled:' .. p.queue
    make_room('zset', registry)
    redis.call('ZADD', registry, p.now, p.job)
    redis.call('ZREMRANGEBYSCORE', registry, '-inf', now - p.batch_ttl) -- RQ itself never prunes this registry
    return
  end
  local registry = rq .. (status == 'finished' and ':finished:' or ':failed:') .. p.queue
  make_room('zset', registry)
  redis.call('ZADD', registry, ttl < 0 and '+inf' or string.format('%.6f', now + ttl), p.job)
end

local function count_for_worker()
  local worker = rq .. ':worker:' .. p.worker
  make_room('hash', worker)
  if redis.call('EXISTS', worker) == 0 then return end
  count(worker, outcome == 'finished' and 'successful_job_count' or 'failed_job_count', 1)
end

local before = redis.call('HGET', key, 'mlxq_outcome')
local ttl_name = outcome == 'finished' and 'result_ttl' or 'failure_ttl'
local ttl = whole_number(redis.call('HGET', key, ttl_name)) or p[ttl_name]

close_execution(p.queue, p.job, p.execution, p.worker)
redis.call('HSET', key, 'status', status, 'ended_at', p.now_iso, 'last_heartbeat', p.now_iso,
  'mlxq_outcome', outcome, 'mlxq_ended_by', p.execution)
local by = {prefix = rq, now = p.now, now_iso = p.now_iso}
local had_dependents = enqueue_dependents(by, p.job, status)
release_slot(by, p.job)
if ttl == 0 then
  -- RQ deletes such a job at once; while others depend on it, they need a minute to read how it ended.
  if had_dependents then redis.call('EXPIRE', key, 60) else redis.call('DEL', key, dependencies, results) end
else
  write_result(ttl)
  register(ttl)
  for _, name in ipairs({key, dependents, dependencies}) do expire(name, ttl) end
end
count_for_worker()
if p.batch then
  local batch = {hash = p.batch, jobs = p.batch_jobs, events = p.batch_events, ttl = p.batch_ttl}
  record_end(batch, {job = p.job, outcome = outcome, before = before, counts = p.counts})
end
return 1
