--- @include "pulse"
--- @include "when_full"
-- Ends the leases of all that a worker holds in p.queues, for it is gone. If it died, recover.lua takes the jobs from
-- there; those of one that has ended in peace, and only couldn't give them back, go back to their queues at once, in their
-- old order. Unless p.is_seen, nobody saw how it ended: then it may have an excuse. RQ's tools list the worker no more.
-- Returns the ids of the jobs.
pass_when_full()
make_room('set', worker_executions_key(p.dead))
make_room('set', rq .. ':workers')
for _, queue in ipairs(p.queues) do
  make_room('zset', wip_key(queue))
  make_room('set', rq .. ':workers:' .. queue)
  if not p.is_seen then excuse_the_silent(queue) end
end

-- By time, and within one claim by the number at the end of the execution id.
local function later(a, b)
  if a.started ~= b.started then return a.started > b.started end
  return a.number > b.number
end

local leases = {}
for _, entry in ipairs(redis.call('SMEMBERS', worker_executions_key(p.dead))) do
  local job, execution = parts_of(entry)
  for _, queue in ipairs(job and p.queues or {}) do
    local lease_end = holds_lease(queue, job, execution)
    if lease_end and tonumber(lease_end) ~= ABANDONED then
      local is_there = is_a('hash', job_key(job))
      leases[#leases + 1] = {queue = queue, job = job, execution = execution, is_there = is_there,
        started = is_there and redis.call('HGET', job_key(job), 'started_at') or '',
        number = tonumber(string.match(execution, '%-(%d+)$')) or 0}
    end
  end
end
table.sort(leases, later)

local ended = {}
for i, lease in ipairs(leases) do
  ended[i] = lease.job
  if p.is_seen then end_excuse(lease.queue, lease.job, lease.execution) end
  if p.has_died then
    redis.call('ZADD', wip_key(lease.queue), ABANDONED, lease.job .. ':' .. lease.execution)
  else
    close_execution(lease.queue, lease.job, lease.execution, p.dead)
    if lease.is_there and redis.call('HGET', job_key(lease.job), 'status') == 'started' then
      put_back(lease.queue, lease.job, 0)
    end
  end
end

local worker = rq .. ':worker:' .. p.dead
redis.call('DEL', worker)
redis.call('SREM', rq .. ':workers', worker)
for _, queue in ipairs(p.queues) do redis.call('SREM', rq .. ':workers:' .. queue, worker) end
table.sort(ended)
return ended
