--- @include "common"
-- Takes up to p.live_limit live jobs and up to p.limit others from the queues in their order, and leases each to this
-- worker, all or nothing.
-- A suspect (a job with p.suspect_at strikes) is claimed only alone: it may take its neighbours down with it.
-- Their data is no more than p.max_bytes together: the next one that doesn't fit waits. That of a job with more than
-- p.max_job_bytes stays in Redis, since it will be refused.
-- Returns {suspended, jobs still queued, how many of them are live, claimed jobs}.
local MAX_POPS = 10000 -- bounds the time for which one call can block Redis over ids of jobs that are gone

local function num_live()
  local total = 0
  for _, queue in ipairs(p.queues) do total = total + redis.call('LLEN', live_key(queue)) end
  return total
end

local function num_queued()
  local total = num_live()
  for _, queue in ipairs(p.queues) do
    total = total + redis.call('LLEN', queue_key(queue)) + redis.call('ZCARD', delayed_key(queue))
  end
  return total
end

-- A job that has lost its status or its data is taken, too: else nobody would ever end it.
local function is_waiting(job)
  if redis.call('EXISTS', job_key(job)) == 0 or not is_ours('hash', job_key(job)) then return false end
  local status = redis.call('HGET', job_key(job), 'status')
  return not status or status == 'queued'
end

-- All of it before the first job is popped: what fails after that loses the job.
make_room('string', rq .. ':suspended')
make_room('set', worker_executions_key(p.worker))
for _, queue in ipairs(p.queues) do
  make_room('list', queue_key(queue))
  make_room('list', live_key(queue))
  make_room('zset', delayed_key(queue))
  make_room('zset', wip_key(queue))
end

if redis.call('EXISTS', rq .. ':suspended') == 1 then return {1, num_queued(), num_live(), {}} end

-- Puts the jobs that have waited long enough to the front of their queue.
local function end_delays(queue)
  local due = redis.call('ZRANGEBYSCORE', delayed_key(queue), 0, string.format('%.6f', lease_now()), 'LIMIT', 0, MAX_POPS)
  for _, job in ipairs(due) do
    redis.call('ZREM', delayed_key(queue), job)
    if is_waiting(job) then redis.call('LPUSH', waiting_key(queue, job), job) end
  end
end

local claimed, pops, bytes = {}, 0, 0

-- Claims from the front of a list until so many are claimed. Returns whether there may be more to claim: not once a
-- suspect, or the room for data, is in the way.
local function claim_from(queue, list, limit)
  while #claimed < limit and pops < MAX_POPS do
    local job = redis.call('LPOP', list)
    if not job then return true end
    pops = pops + 1
    if is_waiting(job) then
      local suspect, size = strikes_of(job) >= p.suspect_at, data_bytes(job)
      if size > p.max_job_bytes then size = 0 end
      if (suspect and p.num_held + #claimed > 0) or size > p.max_bytes - bytes then
        redis.call('LPUSH', list, job)
        return false
      end
      local execution = p.seed .. '-' .. #claimed
      open_execution(queue, job, execution)
      claimed[#claimed + 1] = describe(queue, job, execution, p.max_job_bytes)
      bytes = bytes + size
      if suspect then return false end
    end
  end
  return true
end

-- Live jobs first, those of all queues, and beside them as many others as there is room for.
local function claim()
  for _, queue in ipairs(p.queues) do
    end_delays(queue)
    if not claim_from(queue, live_key(queue), p.live_limit) then return end
  end
  local limit = #claimed + p.limit
  for _, queue in ipairs(p.queues) do
    if not claim_from(queue, queue_key(queue), limit) then return end
  end
end

claim()
return {0, num_queued(), num_live(), claimed}
