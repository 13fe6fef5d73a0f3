--- @include "values"
-- What it means for a batch that one of its jobs ends: its counts, its event, its lifetime. Said here for all who end
-- jobs, workers, cancellations and whoever finds out that RQ's tools have ended one.

local OUTCOME_COUNTS = {finished = 'finished', failed = 'failed', cancelled = 'cancelled_jobs'}

-- Only where it makes a difference: to Redis this is a write like any other, and a producer that adds requests starts
-- over whenever somebody writes to the batch's jobs meanwhile.
local function renew(key, ttl)
  if redis.call('TTL', key) < 0.99 * ttl then redis.call('EXPIRE', key, ttl) end
end

-- batch: {hash, jobs, events: its keys; ttl: in seconds}.
-- ended: {job: its id; outcome: finished, failed or cancelled; before: what the batch has counted it as, if anything;
--         counts: what else goes up, by field; code: why it failed, where nobody wrote an answer}.
-- A job that ends again after somebody requeued it moves from one count to the other; the sum stays right.
local function record_end(batch, ended)
  if ended.before == ended.outcome or redis.call('EXISTS', batch.hash) == 0 then return end
  is_ours('zset', batch.jobs)
  if not is_ours('hash', batch.hash) or not is_ours('stream', batch.events) then return end
  local before = OUTCOME_COUNTS[ended.before]
  if before then count(batch.hash, before, -1) end
  count(batch.hash, OUTCOME_COUNTS[ended.outcome], 1)
  for field, amount in pairs(ended.counts or {}) do count(batch.hash, field, amount) end
  local event = {'job', ended.job, 'status', ended.outcome}
  if ended.code then event[5], event[6] = 'code', ended.code end
  redis.call('XADD', batch.events, '*', unpack(event))
  for _, key in ipairs({batch.hash, batch.jobs, batch.events}) do renew(key, batch.ttl) end
end
