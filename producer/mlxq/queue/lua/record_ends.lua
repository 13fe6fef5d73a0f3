--- @include "ended"
--- @include "when_full"
-- Records the ends of jobs that RQ's own tools ended or deleted.
-- KEYS: batch hash, batch jobs, batch events, then per job its hash and its executions.
-- ARGV: the event up to which the caller has read, batch ttl (s), code of lost jobs, then per job its id.
-- Changes nothing if there are events that the caller doesn't know: a job without a hash may be in one of them.
-- Returns how many ends it recorded.
local OUTCOMES = {finished = 'finished', failed = 'failed', canceled = 'cancelled', stopped = 'cancelled'}
local batch = {hash = KEYS[1], jobs = KEYS[2], events = KEYS[3], ttl = tonumber(ARGV[2])}
local read_to, lost = ARGV[1], ARGV[3]

local unread = redis.call('XREAD', 'COUNT', 1, 'STREAMS', batch.events, read_to)
if unread and #unread > 0 then return 0 end

-- Who overwrites a job with something else has deleted it.
local function is_there(job)
  return redis.call('EXISTS', job) == 1 and is_a('hash', job)
end

-- What the batch is to count the job as, and why; nil while it isn't over.
local function end_of(job, executions)
  if not is_there(job) then return 'failed', lost end
  local status, counted = unpack(redis.call('HMGET', job, 'status', 'mlxq_outcome'))
  if counted then return nil end
  -- A worker that still holds a cancelled job is about to write its partial text.
  if status == 'canceled' and redis.call('EXISTS', executions) == 1 then return nil end
  return status and OUTCOMES[status]
end

local num_recorded = 0
for i = 4, #KEYS, 2 do
  local job, executions, id = KEYS[i], KEYS[i + 1], ARGV[i / 2 + 2]
  if redis.call('ZSCORE', batch.jobs, id) then -- else collected and forgotten since the caller looked
    local outcome, code = end_of(job, executions)
    if outcome then
      pass_when_full()
      if not code then redis.call('HSET', job, 'mlxq_outcome', outcome) end
      record_end(batch, {job = id, outcome = outcome, code = code})
      num_recorded = num_recorded + 1
    end
  end
end
return num_recorded
