--- @include "when_full"
-- Deletes collected jobs, with their answers and events; a batch's counts stay.
-- KEYS: batch jobs, batch events, then RQ's registries of ended jobs, as many as ARGV[1], then all that is to be deleted.
-- ARGV: number of registries, number of jobs, the jobs' ids, the ids of their events.
local num_registries, num_jobs = tonumber(ARGV[1]), tonumber(ARGV[2])
local jobs, events = {unpack(ARGV, 3, num_jobs + 2)}, {unpack(ARGV, num_jobs + 3)}
pass_when_full()
redis.call('ZREM', KEYS[1], unpack(jobs))
redis.call('XDEL', KEYS[2], unpack(events))
for i = 3, num_registries + 2 do redis.call('ZREM', KEYS[i], unpack(jobs)) end
redis.call('UNLINK', unpack(KEYS, num_registries + 3))
return num_jobs
