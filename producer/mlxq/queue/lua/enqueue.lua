-- Puts jobs into a queue, as RQ's `Queue.enqueue_many` would, and into their batch. Those that the batch has already stay
-- as they are.
-- KEYS: the set of RQ's queues, the queue, the batch's jobs, the batch, then the jobs' hashes.
-- ARGV: 1 to put jobs into the queue although the batch has them, else 0; number of fields that all jobs have alike,
-- these with their values; then of each job its id, its place in the batch, its data and its meta.
-- Returns the ids of those that the batch had.
local again, num_alike = ARGV[1] == '1', tonumber(ARGV[2])
local alike = {unpack(ARGV, 3, 2 * num_alike + 2)}
local known, at = {}, 2 * num_alike + 3
redis.call('SADD', KEYS[1], KEYS[2])
for i = 5, #KEYS do
  local is_new = redis.call('ZADD', KEYS[3], 'NX', ARGV[at + 1], ARGV[at]) == 1
  if not is_new then known[#known + 1] = ARGV[at] end
  if is_new or again then
    redis.call('HSET', KEYS[i], 'data', ARGV[at + 2], 'meta', ARGV[at + 3], unpack(alike))
    redis.call('RPUSH', KEYS[2], ARGV[at])
  end
  at = at + 4
end
redis.call('HINCRBY', KEYS[4], 'total', #KEYS - 4 - #known)
return known
