--- @include "pulse"
--- @include "when_full"
-- Extends the leases of p.jobs, a list of {queue, job, execution}, once a third of a lease has gone by, and takes back
-- what RQ's clean-up has failed meanwhile because the lease had run out: its worker lives, and still has it.
-- Returns for each job: 0 held, 1 canceled by somebody (rq.job.Job.cancel), 2 lost.

-- Whoever claims a job leaves its name; an end that a worker has written has one, too. One without is RQ's own.
local function was_failed_by_rq(job, execution)
  local status, claimed_by, ended_by = unpack(redis.call('HMGET', job_key(job),
    'status', 'mlxq_claimed_by', 'mlxq_ended_by'))
  return status == 'failed' and claimed_by == execution and ended_by ~= execution
end

local states = {}
pass_when_full()
for _, queue in ipairs(p.queues) do note_beat(queue) end
for i, entry in ipairs(p.jobs) do
  local queue, job, execution = entry[1], entry[2], entry[3]
  end_excuse(queue, job, execution)
  local lease_end = holds_lease(queue, job, execution)
  if not is_ours('hash', job_key(job)) then
    states[i] = 2
  elseif lease_end then
    local left = tonumber(lease_end) - lease_now()
    if left < p.lease_s * 2 / 3 or left > 2 * p.lease_s then extend_lease(queue, job, execution) end
    states[i] = 0
  elseif redis.call('HGET', job_key(job), 'status') == 'canceled'
      and redis.call('EXISTS', execution_key(job, execution)) == 1 then
    redis.call('EXPIRE', execution_key(job, execution), math.ceil(p.lease_s))
    states[i] = 1
  elseif was_failed_by_rq(job, execution) then
    if is_a('zset', failed_key(queue)) then redis.call('ZREM', failed_key(queue), job) end
    redis.call('HSET', job_key(job), 'ended_at', '')
    open_execution(queue, job, execution)
    states[i] = 0
  else
    states[i] = 2
  end
end
return states
