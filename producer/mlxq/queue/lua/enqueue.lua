-- Puts new jobs into a queue, as RQ's `Queue.enqueue_many` would, and into their batch.
-- KEYS: the set of RQ's queues, the queue, the batch's jobs, then the jobs' hashes.
-- ARGV: number of fields that all jobs have alike, these with their values, then of each job its id, its place in the
-- batch, its data and its meta.
local num_alike = tonumber(ARGV[1])
local alike = {unpack(ARGV, 2, 2 * num_alike + 1)}
redis.call('SADD', KEYS[1], KEYS[2])
local at = 2 * num_alike + 2
for i = 4, #KEYS do
  redis.call('HSET', KEYS[i], 'data', ARGV[at + 2], 'meta', ARGV[at + 3], unpack(alike))
  redis.call('RPUSH', KEYS[2], ARGV[at])
  redis.call('ZADD', KEYS[3], ARGV[at + 1], ARGV[at])
  at = at + 4
end
return #KEYS - 3
