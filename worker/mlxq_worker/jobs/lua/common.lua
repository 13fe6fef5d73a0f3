--- @include "values"
-- In front of every script of a worker. ARGV[1] is RQ's key prefix, ARGV[2] a JSON object with the script's parameters.
-- Times in it are Unix seconds on the caller's clock, as strings, because cjson would round a number to 14 digits.
local rq = ARGV[1]
local p = cjson.decode(ARGV[2])

local function job_key(job) return rq .. ':job:' .. job end
local function queue_key(queue) return rq .. ':queue:' .. queue end
local function live_key(queue) return 'mlxq:live:' .. queue end
local function delayed_key(queue) return 'mlxq:delayed:' .. queue end
local function wip_key(queue) return rq .. ':wip:' .. queue end
local function failed_key(queue) return rq .. ':failed:' .. queue end
local function execution_key(job, execution) return rq .. ':execution:' .. job .. ':' .. execution end
local function executions_key(job) return rq .. ':executions:' .. job end
local function worker_executions_key(worker) return rq .. ':worker:' .. worker .. ':executions' end

-- A field of a job as a whole number, or nil. Anybody may have written anything into the hash, and neither HINCRBY nor
-- EXPIRE takes fractions or numbers of many digits.
local function whole_number(value)
  local digits = value and string.match(value, '^%-?(%d+)$')
  return digits and #digits <= 9 and tonumber(value) or nil
end

local function strikes_of(job)
  return math.max(0, whole_number(redis.call('HGET', job_key(job), 'mlxq_strikes')) or 0)
end

-- Returns how many the job has then.
local function add_strikes(job, number)
  local strikes = strikes_of(job) + number
  redis.call('HSET', job_key(job), 'mlxq_strikes', strikes)
  return strikes
end

-- Leases are measured on Redis's clock, the only one that all workers share; a test may move its own instead.
local function lease_now()
  if p.lease_clock == 'caller' then return tonumber(p.now) end
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

-- The lease of a worker that is known to be dead has this end: the year 9999, no lease of a worker that lives. RQ's tools
-- take what has run out for failed as soon as they see it; this they leave to recover.lua.
local ABANDONED = 253370764800

-- What a worker holds is listed by its name until somebody has taken it over. The list outlives the leases by far: where
-- those got lost, it is what tells of the jobs, also when no other worker has been there for days.
local HELD_TTL_S = 7 * 24 * 3600

-- The job and the execution that an entry names, or nil. Older producers put colons into ids of jobs.
local function parts_of(entry) return string.match(entry, '^(.*):([^:]*)$') end

-- The entry in rq:wip:{queue} is the lease: whoever's execution is in there owns the job.
local function has_lease(queue, job, execution)
  return redis.call('ZSCORE', wip_key(queue), job .. ':' .. execution)
end

local function extend_lease(queue, job, execution)
  make_room('zset', wip_key(queue))
  make_room('hash', execution_key(job, execution))
  local now, lease = lease_now(), tonumber(p.lease_s)
  local ttl = math.ceil(lease)
  redis.call('ZADD', wip_key(queue), string.format('%.6f', now + lease), job .. ':' .. execution)
  redis.call('HSET', execution_key(job, execution), 'last_heartbeat', p.now)
  redis.call('EXPIRE', execution_key(job, execution), ttl)
  make_room('zset', executions_key(job))
  redis.call('ZADD', executions_key(job), string.format('%.6f', now + lease + 60), execution)
  redis.call('EXPIRE', executions_key(job), ttl + 60)
  redis.call('SADD', worker_executions_key(p.worker), job .. ':' .. execution)
  redis.call('EXPIRE', worker_executions_key(p.worker), HELD_TTL_S)
  redis.call('HSET', job_key(job), 'last_heartbeat', p.now_iso)
end

-- If somebody has deleted leases or written over all of them, the jobs themselves say who has claimed them last. Whoever
-- takes a job from its worker changes its status, too.
local function holds_lease(queue, job, execution)
  make_room('zset', wip_key(queue))
  local lease_end = has_lease(queue, job, execution)
  if lease_end or not is_ours('hash', job_key(job)) then return lease_end end
  local status, claimed_by = unpack(redis.call('HMGET', job_key(job), 'status', 'mlxq_claimed_by'))
  if status ~= 'started' or claimed_by ~= execution then return lease_end end
  redis.call('ZADD', wip_key(queue), string.format('%.6f', lease_now() + p.lease_s), job .. ':' .. execution)
  return has_lease(queue, job, execution)
end

-- What rq.executions.Execution.create and Job.prepare_for_execution write.
local function open_execution(queue, job, execution)
  make_room('hash', execution_key(job, execution))
  make_room('set', worker_executions_key(p.worker))
  redis.call('HSET', execution_key(job, execution),
    'id', execution, 'job_id', job, 'created_at', p.now, 'worker_name', p.worker)
  extend_lease(queue, job, execution)
  redis.call('HSET', job_key(job), 'status', 'started', 'started_at', p.now_iso, 'worker_name', p.worker,
    'origin', queue, 'mlxq_claimed_by', execution)
  redis.call('PERSIST', job_key(job))
end

-- What rq.executions.Execution.delete removes.
local function close_execution(queue, job, execution, worker)
  make_room('zset', executions_key(job))
  make_room('zset', wip_key(queue))
  make_room('set', worker_executions_key(worker))
  redis.call('DEL', execution_key(job, execution))
  redis.call('ZREM', wip_key(queue), job .. ':' .. execution)
  redis.call('ZREM', executions_key(job), execution)
  redis.call('SREM', worker_executions_key(worker), job .. ':' .. execution)
end

-- Live jobs wait in a list of their own.
local function is_live(job) return redis.call('HGET', job_key(job), 'mlxq_live') == '1' end
local function waiting_key(queue, job) return is_live(job) and live_key(queue) or queue_key(queue) end

-- As if it had never been claimed. Without strikes it goes to the front of the queue at once; with some, claim.lua puts
-- it there after a while that doubles with each, so that a job that breaks things breaks them ever more rarely.
local function put_back(queue, job, strikes)
  local waiting = waiting_key(queue, job)
  make_room('list', waiting)
  redis.call('HSET', job_key(job), 'status', 'queued', 'started_at', '', 'worker_name', '')
  local ttl = whole_number(redis.call('HGET', job_key(job), 'ttl'))
  if ttl and ttl > 0 then redis.call('EXPIRE', job_key(job), ttl) end
  if strikes == 0 then
    redis.call('LPUSH', waiting, job)
    return
  end
  make_room('zset', delayed_key(queue))
  local delay = math.min(p.max_delay_s, p.delay_s * 2 ^ (strikes - 1))
  -- What is put back last is to be first in the queue; at one time, the place in the set says which that is.
  local due = lease_now() + delay + redis.call('ZCARD', delayed_key(queue)) / 1000000
  redis.call('ZADD', delayed_key(queue), string.format('%.6f', due), job)
end

-- What is asked of RQ, and not of us; only whether it is.
local RQ_FEATURES = {
  'success_callback_name', 'failure_callback_name', 'stopped_callback_name', 'webhooks', 'repeats_left'}
local MAX_FIELD_BYTES = 65536 -- of what stands beside the data

local function short_field(job, field)
  return redis.call('HSTRLEN', job_key(job), field) <= MAX_FIELD_BYTES and redis.call('HGET', job_key(job), field)
end

local function data_bytes(job) return redis.call('HSTRLEN', job_key(job), 'data') end

-- One claimed job, in the order in which mlxq_worker.jobs.claimed.ClaimedJob reads it; without its data if that is
-- longer than max_bytes.
local function describe(queue, job, execution, max_bytes)
  local size, features = data_bytes(job), {}
  for i, field in ipairs(RQ_FEATURES) do features[i] = redis.call('HSTRLEN', job_key(job), field) end
  local data = size <= max_bytes and redis.call('HGET', job_key(job), 'data')
  return {queue, job, execution, tostring(strikes_of(job)), size, data, short_field(job, 'meta'),
    short_field(job, 'enqueued_at'), short_field(job, 'timeout'), is_live(job) and 1 or 0, unpack(features)}
end
