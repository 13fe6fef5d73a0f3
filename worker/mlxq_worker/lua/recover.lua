-- Takes up to p.limit jobs per queue from workers that let their leases run out, and gives each a strike.
-- Jobs go back to the front of their queue, in their old order; one with p.max_strikes is leased to this worker
-- instead, so that it can be failed. Returns {how many went back, the jobs to fail}.
local put_back_jobs, struck_out = 0, {}
for _, queue in ipairs(p.queues) do
  local expired = redis.call('ZRANGEBYSCORE', wip_key(queue), 0, p.now, 'LIMIT', 0, p.limit)
  for i = #expired, 1, -1 do
    local job, execution = string.match(expired[i], '^([^:]*):(.*)$')
    local owner = redis.call('HMGET', job_key(job), 'status', 'worker_name')
    close_execution(queue, job, execution, owner[2] or '')
    if owner[1] == 'started' then
      local strikes = redis.call('HINCRBY', job_key(job), 'mlxq_strikes', 1)
      if strikes >= p.max_strikes then
        local successor = p.seed .. '-' .. #struck_out
        open_execution(queue, job, successor)
        struck_out[#struck_out + 1] = describe(queue, job, successor)
      else
        put_back(queue, job)
        put_back_jobs = put_back_jobs + 1
      end
    end
  end
end
return {put_back_jobs, struck_out}
