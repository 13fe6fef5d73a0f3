"""Jobs that RQ's own tools ended or deleted: records their end as a worker would have, and takes it back.

RQ's commands, its maintenance and its stock workers know nothing of batches, so what they do to a job shows in no
count and no event. Whoever looks at a batch and misses jobs calls `record_ends`; from then on everybody sees the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from redis import Redis
from redis.client import Pipeline
from rq.job import Job
from rq.queue import Queue
from rq.registry import StartedJobRegistry

from mlxq import keys
from mlxq.queue import rq_keys

LOST = "job_lost"
"""The code of a job that was deleted before it had ended."""

_COUNTS: Mapping[bytes, str] = {b"finished": "finished", b"failed": "failed", b"cancelled": "cancelled_jobs"}
"""Status in an event -> field of the batch."""
_READ_AT_ONCE = 5000
_Entries = list[tuple[bytes, dict[bytes, bytes]]]

_RECORD_ENDS = """
-- KEYS: batch hash, batch jobs, batch events, then per job its hash and its executions.
-- ARGV: the event up to which the caller has read, batch ttl (s), code of lost jobs, then per job its id.
-- Changes nothing if there are events that the caller doesn't know: a job without a hash may be in one of them.
local OUTCOMES = {finished = 'finished', failed = 'failed', canceled = 'cancelled', stopped = 'cancelled'}
local COUNTS = {finished = 'finished', failed = 'failed', cancelled = 'cancelled_jobs'}
local unread = redis.call('XREAD', 'COUNT', 1, 'STREAMS', KEYS[3], ARGV[1])
if unread and #unread > 0 then return 0 end

local function record(id, outcome, ...)
  redis.call('HINCRBY', KEYS[1], COUNTS[outcome], 1)
  redis.call('XADD', KEYS[3], '*', 'job', id, 'status', outcome, ...)
end

local recorded = 0
for i = 4, #KEYS, 2 do
  local job, id = KEYS[i], ARGV[i / 2 + 2]
  local is_there = redis.call('TYPE', job).ok == 'hash' -- who overwrites a job with something else has deleted it
  local fields = is_there and redis.call('HMGET', job, 'status', 'mlxq_outcome') or {}
  local outcome = fields[1] and OUTCOMES[fields[1]]
  if not redis.call('ZSCORE', KEYS[2], id) then
    outcome = nil -- collected and forgotten since the caller looked
  elseif not is_there then
    record(id, 'failed', 'code', ARGV[3])
    recorded = recorded + 1
  -- A worker that still holds a cancelled job is about to write its partial text.
  elseif outcome and not fields[2] and not (fields[1] == 'canceled' and redis.call('EXISTS', KEYS[i + 1]) == 1) then
    redis.call('HSET', job, 'mlxq_outcome', outcome)
    record(id, outcome)
    recorded = recorded + 1
  end
end
if recorded > 0 then
  for i = 1, 3 do redis.call('EXPIRE', KEYS[i], ARGV[2]) end
end
return recorded
"""

_GONE = """
-- KEYS: job hashes.  Returns the places of those that don't exist, from 0.
local gone = {}
for i, key in ipairs(KEYS) do
  if redis.call('EXISTS', key) == 0 then gone[#gone + 1] = i - 1 end
end
return gone
"""


def record_ends(connection: Redis, batch_id: str, job_ids: Sequence[str], *, read_to: str) -> int:
    """Count those of `job_ids` that have ended or are gone, with an event each, atomically. Returns how many.

    Args:
        job_ids: jobs of the batch that no event names.
        read_to: the newest event that the caller has read; where there are newer ones, nothing happens.
    """
    script_keys = [keys.batch(batch_id), keys.batch_jobs(batch_id), keys.batch_events(batch_id)]
    for job_id in job_ids:
        script_keys += [Job.key_for(job_id), rq_keys.executions(job_id)]
    args: list[str | int] = [read_to, keys.BATCH_TTL_S, LOST, *job_ids]
    # Not by its hash: an unknown one is an error, after which the embedded server hangs up.
    return cast(int, connection.eval(_RECORD_ENDS, len(script_keys), *script_keys, *args))


def num_open(connection: Redis, queue: str) -> int:
    """How many jobs of all batches wait or run in a queue. A batch that misses more than that has lost some."""
    with connection.pipeline(transaction=False) as pipe:
        pipe.llen(Queue(queue, connection=connection).key)
        pipe.zcard(keys.delayed(queue))
        pipe.zcard(StartedJobRegistry(queue, connection=connection).key)
        return sum(pipe.execute())


def gone(connection: Redis | Pipeline, job_ids: Sequence[str]) -> list[str]:
    """Those of `job_ids` that Redis has no longer; one round trip."""
    places = cast("list[int]", connection.eval(_GONE, len(job_ids), *map(Job.key_for, job_ids))) if job_ids else []
    return [job_ids[place] for place in places]


def ends_of(connection: Redis | Pipeline, batch_id: str, job_ids: Sequence[str]) -> dict[bytes, dict[bytes, bytes]]:
    """The events of these jobs by their ids, oldest first. Reads all events of the batch."""
    wanted = {job_id.encode() for job_id in job_ids}
    found: dict[bytes, dict[bytes, bytes]] = {}
    start, events = "-", keys.batch_events(batch_id)
    while entries := cast(_Entries, connection.xrange(events, start, "+", count=_READ_AT_ONCE)):
        found.update((event_id, fields) for event_id, fields in entries if fields[b"job"] in wanted)
        start = f"({entries[-1][0].decode()}"
    return found


def take_back(pipe: Pipeline, batch_id: str, ends: Mapping[bytes, Mapping[bytes, bytes]]) -> None:
    """Uncount jobs that are to run again: their last ends count no more, and no event tells of them."""
    if ends:
        pipe.xdel(keys.batch_events(batch_id), *ends)
    for status in {fields[b"job"]: fields[b"status"] for fields in ends.values()}.values():
        pipe.hincrby(keys.batch(batch_id), _COUNTS[status], -1)
