--- @include "pulse"
--- @include "when_full"
-- Extends the leases of p.jobs, a list of {queue, job, execution}, once a third of a lease has gone by.
-- Returns for each job: 0 held, 1 canceled by somebody (rq.job.Job.cancel), 2 lost.
local states = {}
pass_when_full()
for _, queue in ipairs(p.queues) do note_beat(queue) end
for i, entry in ipairs(p.jobs) do
  local queue, job, execution = entry[1], entry[2], entry[3]
  local lease_end = holds_lease(queue, job, execution)
  if not is_ours('hash', job_key(job)) then
    states[i] = 2
  elseif lease_end then
    if tonumber(lease_end) - lease_now() < p.lease_s * 2 / 3 then extend_lease(queue, job, execution) end
    states[i] = 0
  elseif redis.call('HGET', job_key(job), 'status') == 'canceled'
      and redis.call('EXISTS', execution_key(job, execution)) == 1 then
    redis.call('EXPIRE', execution_key(job, execution), math.ceil(p.lease_s))
    states[i] = 1
  else
    states[i] = 2
  end
end
return states
