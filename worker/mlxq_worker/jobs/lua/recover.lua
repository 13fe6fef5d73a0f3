--- @include "pulse"
--- @include "when_full"
-- Takes up to p.limit jobs per queue from workers that let their leases run out, and gives each a strike; with
-- p.only_abandoned, or while nobody can be blamed for that, from none but those that are known to be dead.
-- Jobs go back to their queue, in their old order; one with p.max_strikes is leased to this worker
-- instead, so that it can be failed. One whose worker is excused gets no strike. Returns {how many went back with a strike,
-- how many without, the jobs to fail, how many leases have run out that may yet be extended}.
local num_struck, num_excused, struck_out, num_doubtful = 0, 0, {}, 0
pass_when_full()

-- What somebody has claimed and lost the lease of, by a stranger's hand, gets one again: it runs out if nobody extends it.
local function restore_leases(queue)
  local workers = rq .. ':workers:' .. queue
  make_room('set', workers)
  for _, worker in ipairs(redis.call('SMEMBERS', workers)) do
    local held = worker .. ':executions'
    for _, entry in ipairs(type_of(held) == 'set' and redis.call('SMEMBERS', held) or {}) do
      local job, execution = parts_of(entry)
      if job and is_a('hash', job_key(job)) and redis.call('HGET', job_key(job), 'origin') == queue then
        holds_lease(queue, job, execution)
      end
    end
  end
end

-- Leases that were beaten together end together, so their order says nothing. That of the claims does: by time, and
-- within one claim by the number at the end of the execution id.
local function earlier(a, b)
  if a.started ~= b.started then return a.started < b.started end
  return a.number < b.number
end

local function expired_leases(queue)
  make_room('zset', wip_key(queue))
  local leases, now = {}, string.format('%.6f', lease_now())
  local entries = redis.call('ZRANGEBYSCORE', wip_key(queue), ABANDONED, ABANDONED, 'LIMIT', 0, p.limit)
  if p.only_abandoned or not is_silence_telling(queue) then
    num_doubtful = num_doubtful + redis.call('ZCOUNT', wip_key(queue), 0, now)
  else
    local silent = redis.call('ZRANGEBYSCORE', wip_key(queue), 0, now, 'LIMIT', 0, p.limit - #entries)
    for _, entry in ipairs(silent) do entries[#entries + 1] = entry end
  end
  for _, entry in ipairs(entries) do
    local job, execution = parts_of(entry)
    if not job or not is_ours('hash', job_key(job)) then
      redis.call('ZREM', wip_key(queue), entry) -- not an execution, or one of a job that is gone
    else
      local fields = redis.call('HMGET', job_key(job), 'status', 'worker_name', 'started_at')
      leases[#leases + 1] = {job = job, execution = execution, status = fields[1], worker = fields[2] or '',
        started = fields[3] or '', number = tonumber(string.match(execution, '%-(%d+)$')) or 0}
    end
  end
  table.sort(leases, earlier)
  return leases
end

for _, queue in ipairs(p.queues) do
  excuse_the_silent(queue)
  restore_leases(queue)
  local leases = expired_leases(queue)
  for i = #leases, 1, -1 do
    local job, lease = leases[i].job, leases[i]
    local is_excused = end_excuse(queue, job, lease.execution)
    close_execution(queue, job, lease.execution, lease.worker)
    if lease.status == 'started' and is_excused then
      put_back(queue, job, 0)
      num_excused = num_excused + 1
    elseif lease.status == 'started' then
      local strikes = add_strikes(job, 1)
      if strikes >= p.max_strikes then
        local successor = p.seed .. '-' .. #struck_out
        open_execution(queue, job, successor)
        struck_out[#struck_out + 1] = describe(queue, job, successor, 0)
      else
        put_back(queue, job, strikes)
        num_struck = num_struck + 1
      end
    end
  end
end
return {num_struck, num_excused, struck_out, num_doubtful}
