--- @include "common"
--- @include "when_full"
-- Ends the leases of all that a worker holds in p.queues, for it is gone. If it died, recover.lua takes the jobs from
-- there; those of one that has ended in peace, and only couldn't give them back, go back to their queues at once. RQ's
-- tools list the worker no more. Returns the ids of the jobs.
local ended = {}
pass_when_full()

local function end_lease(queue, job, execution)
  if p.has_died then
    redis.call('ZADD', wip_key(queue), ABANDONED, job .. ':' .. execution)
    return
  end
  close_execution(queue, job, execution, p.dead)
  if is_a('hash', job_key(job)) and redis.call('HGET', job_key(job), 'status') == 'started' then
    put_back(queue, job, 0)
  end
end

for _, entry in ipairs(redis.call('SMEMBERS', worker_executions_key(p.dead))) do
  for _, queue in ipairs(p.queues) do
    local lease_end = redis.call('ZSCORE', wip_key(queue), entry)
    local job, execution = string.match(entry, '^([^:]*):(.*)$')
    if job and lease_end and tonumber(lease_end) > ABANDONED then
      end_lease(queue, job, execution)
      ended[#ended + 1] = job
    end
  end
end
local worker = rq .. ':worker:' .. p.dead
redis.call('DEL', worker)
redis.call('SREM', rq .. ':workers', worker)
for _, queue in ipairs(p.queues) do redis.call('SREM', rq .. ':workers:' .. queue, worker) end
table.sort(ended)
return ended
