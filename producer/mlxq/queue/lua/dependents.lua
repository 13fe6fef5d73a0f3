--- @include "values"
-- What RQ 3 does for other jobs when one has ended: enqueues those that waited for it, and passes its place under a
-- rate limit on. Said here for all who end jobs, so that it happens in the script that writes the end, or not at all.
-- Reads no job's data. Keys that hold something else than RQ puts there cost the jobs behind them only: those go on
-- waiting.
-- by: {prefix: RQ's key prefix; now, now_iso: as Unix seconds and in RQ's form, as text}

local DEFAULT_TIMEOUT_S = 180 -- rq.Queue.DEFAULT_TIMEOUT

local function job_of(by, job) return by.prefix .. ':job:' .. job end
local function dependents_of(by, job) return by.prefix .. ':job:' .. job .. ':dependents' end
local function queue_of(by, origin) return by.prefix .. ':queue:' .. origin end

local function is_set_to(value, number) return value ~= false and tonumber(value) == number end

-- rq.job.Job.dependencies_are_met: a parent that is gone counts as finished, one that was cancelled never does.
local function is_met(status, allows_failures)
  return not status or status == 'finished' or (status == 'failed' and allows_failures)
end

local function may_run(by, job, parent, status, allows_failures)
  if not is_met(status, allows_failures) then return false end
  local dependencies = by.prefix .. ':job::' .. job .. ':dependencies' -- two colons, as RQ has it
  if not is_a('set', dependencies) then return false end
  for _, other in ipairs(redis.call('SMEMBERS', dependencies)) do
    local key = job_of(by, other)
    if other ~= parent and is_a('hash', key) and not is_met(redis.call('HGET', key, 'status'), allows_failures) then
      return false
    end
  end
  return true
end

local function push(by, job, origin, at_front)
  redis.call(at_front and 'LPUSH' or 'RPUSH', queue_of(by, origin), job)
  redis.pcall('SADD', by.prefix .. ':queues', queue_of(by, origin)) -- a list for RQ's tools, no more
  redis.call('HSET', job_of(by, job), 'status', 'queued', 'enqueued_at', by.now_iso)
end

local function limit_of(by, name)
  local config = by.prefix .. ':rl:' .. name
  return {config = config, allowed = config .. ':allowed', waiting = config .. ':rate_limited'}
end

local function is_intact(limit)
  return is_a('hash', limit.config) and is_a('zset', limit.allowed) and is_a('zset', limit.waiting)
end

-- Lets jobs that wait under a rate limit through while there is room, the oldest first.
local function fill(by, limit, concurrency)
  while redis.call('ZCARD', limit.allowed) < concurrency do
    local job = redis.call('ZPOPMIN', limit.waiting)[1]
    if not job then return end
    local key = job_of(by, job)
    local fields = is_a('hash', key) and redis.call('HMGET', key, 'status', 'origin', 'enqueue_at_front') or {}
    if fields[1] == 'rate_limited' and fields[2] and is_a('list', queue_of(by, fields[2])) then
      redis.call('ZADD', limit.allowed, by.now, job)
      push(by, job, fields[2], is_set_to(fields[3], 1))
    end
  end
end

-- A job has ended: whoever waits for its place under a rate limit gets it (rq.rate_limit.release_slot).
local function release_slot(by, job)
  local name = redis.call('HGET', job_of(by, job), 'rate_limit_key')
  if not name or name == '' then return end
  local limit = limit_of(by, name)
  if not is_intact(limit) then return end
  redis.call('ZREM', limit.allowed, job)
  fill(by, limit, tonumber(redis.call('HGET', limit.config, 'concurrency')) or 0)
end

local function wait_for_slot(by, job, fields)
  local limit = limit_of(by, fields.rate_limit_key)
  redis.call('HSET', job_of(by, job), 'status', 'rate_limited', 'enqueue_at_front', fields.at_front and 1 or 0)
  redis.pcall('SADD', by.prefix .. ':rl-keys', fields.rate_limit_key)
  redis.call('HSET', limit.config, 'concurrency', fields.concurrency)
  redis.call('ZADD', limit.waiting, by.now, job)
  fill(by, limit, fields.concurrency)
end

-- What is to be known of a job that waits for another; nil if it doesn't, or if it can't be put anywhere.
local function read_dependent(by, job)
  local key = job_of(by, job)
  if not is_a('hash', key) then return nil end
  local status, origin, created, allows, at_front, on_retry, ended_at, ttl, limit_key, concurrency = unpack(redis.call(
    'HMGET', key, 'status', 'origin', 'created_at', 'allow_dependency_failures', 'enqueue_at_front',
    'enqueue_at_front_on_retry', 'ended_at', 'ttl', 'rate_limit_key', 'rate_limit_concurrency'))
  local waits = status == 'deferred' or status == 'created'
  if not waits or not origin or not is_a('list', queue_of(by, origin)) then return nil end
  local dependent = {id = job, key = key, origin = origin, ttl = tonumber(ttl or ''), created = created or '',
    allows_failures = is_set_to(allows, 1),
    at_front = is_set_to(at_front, 1) or (is_set_to(on_retry, 1) and ended_at ~= false and ended_at ~= '')}
  if limit_key and limit_key ~= '' and tonumber(concurrency or '') then
    if not is_intact(limit_of(by, limit_key)) then return nil end
    dependent.rate_limit_key, dependent.concurrency = limit_key, tonumber(concurrency)
  end
  return dependent
end

local function enqueue(by, dependent)
  redis.pcall('ZREM', by.prefix .. ':deferred:' .. dependent.origin, dependent.id)
  redis.call('HSETNX', dependent.key, 'timeout', DEFAULT_TIMEOUT_S)
  local ttl = dependent.ttl
  if ttl and ttl >= 1 and ttl < 1e9 then -- from now on
    local dependencies = by.prefix .. ':job::' .. dependent.id .. ':dependencies'
    for _, key in ipairs({dependent.key, dependents_of(by, dependent.id), dependencies}) do
      redis.call('EXPIRE', key, math.floor(ttl))
    end
  end
  if dependent.rate_limit_key then
    wait_for_slot(by, dependent.id, dependent)
  else
    push(by, dependent.id, dependent.origin, dependent.at_front)
  end
end

-- `job` has ended in `status`: enqueues those that waited for it and for nothing else, in the order in which they came.
-- Returns whether there were any that waited.
local function enqueue_dependents(by, job, status)
  local key = dependents_of(by, job)
  if redis.call('EXISTS', key) == 0 or not is_a('set', key) then return false end
  local ready = {}
  for _, id in ipairs(redis.call('SMEMBERS', key)) do
    local dependent = read_dependent(by, id)
    if dependent and may_run(by, id, job, status, dependent.allows_failures) then ready[#ready + 1] = dependent end
  end
  table.sort(ready, function(a, b)
    if a.created ~= b.created then return a.created < b.created end
    return a.id < b.id
  end)
  for _, dependent in ipairs(ready) do
    enqueue(by, dependent)
    redis.call('SREM', key, dependent.id)
  end
  return true
end
