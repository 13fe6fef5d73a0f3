--- @include "common"
-- Ends the leases of all that a worker holds in p.queues, for it is dead: recover.lua takes the jobs from there. RQ's
-- tools list the worker no more. Returns the ids of the jobs.
local ended = {}
make_room('set', worker_executions_key(p.dead))
make_room('set', rq .. ':workers')
for _, queue in ipairs(p.queues) do
  make_room('zset', wip_key(queue))
  make_room('set', rq .. ':workers:' .. queue)
end
for _, entry in ipairs(redis.call('SMEMBERS', worker_executions_key(p.dead))) do
  for _, queue in ipairs(p.queues) do
    local lease_end = redis.call('ZSCORE', wip_key(queue), entry)
    if lease_end and tonumber(lease_end) > ABANDONED then
      redis.call('ZADD', wip_key(queue), ABANDONED, entry)
      ended[#ended + 1] = string.match(entry, '^([^:]*):')
    end
  end
end
local worker = rq .. ':worker:' .. p.dead
redis.call('DEL', worker)
redis.call('SREM', rq .. ':workers', worker)
for _, queue in ipairs(p.queues) do redis.call('SREM', rq .. ':workers:' .. queue, worker) end
table.sort(ended)
return ended
