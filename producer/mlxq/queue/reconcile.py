"""Jobs that RQ's own tools ended or deleted: records their end as a worker would have, and takes it back.

RQ's commands, its maintenance and its stock workers know nothing of batches, so what they do to a job shows in no
count and no event. Whoever looks at a batch and misses jobs calls `record_ends`; from then on everybody sees the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from redis import Redis
from redis.client import Pipeline
from rq.defaults import RQ_KEY_PREFIX
from rq.job import Job
from rq.queue import Queue
from rq.registry import StartedJobRegistry
from rq.utils import now, utcformat

from mlxq import keys
from mlxq.queue import rq_keys
from mlxq.queue.connect import replies_to
from mlxq.queue.scripts import source

LOST = "job_lost"
"""The code of a job that was deleted before it had ended."""

_COUNTS: Mapping[bytes, str] = {b"finished": "finished", b"failed": "failed", b"cancelled": "cancelled_jobs"}
"""Status in an event -> field of the batch."""
_READ_AT_ONCE = 5000
_Entries = list[tuple[bytes, dict[bytes, bytes]]]


def record_ends(connection: Redis, batch_id: str, job_ids: Sequence[str], *, read_to: str) -> int:
    """Count those of `job_ids` that have ended or are gone, with an event each, and enqueue what waited for them, all
    atomically. Returns how many.

    Args:
        job_ids: jobs of the batch that no event names.
        read_to: the newest event that the caller has read; where there are newer ones, nothing happens.
    """
    script_keys = [keys.batch(batch_id), keys.batch_jobs(batch_id), keys.batch_events(batch_id)]
    for job_id in job_ids:
        script_keys += [Job.key_for(job_id), rq_keys.executions(job_id)]
    moment = now()
    args: list[str | int] = [read_to, keys.BATCH_TTL_S, LOST]
    args += [RQ_KEY_PREFIX, f"{moment.timestamp():.6f}", utcformat(moment), *job_ids]
    # Not by its hash: an unknown one is an error, after which the embedded server hangs up.
    return cast(int, connection.eval(source("record_ends"), len(script_keys), *script_keys, *args))


def num_open(connection: Redis, queue: str) -> int:
    """How many jobs of all batches wait or run in a queue. A batch that misses more than that has lost some."""
    with connection.pipeline(transaction=False) as pipe:
        pipe.llen(Queue(queue, connection=connection).key)
        pipe.llen(keys.live(queue))
        pipe.zcard(keys.delayed(queue))
        pipe.zcard(StartedJobRegistry(queue, connection=connection).key)
        return sum(num or 0 for num in replies_to(pipe))


def gone(connection: Redis | Pipeline, job_ids: Sequence[str]) -> list[str]:
    """Those of `job_ids` that Redis has no longer; one round trip."""
    if not job_ids:
        return []
    indices = cast("list[int]", connection.eval(source("gone"), len(job_ids), *map(Job.key_for, job_ids)))
    return [job_ids[index] for index in indices]


def ends_of(connection: Redis | Pipeline, batch_id: str, job_ids: Sequence[str]) -> dict[bytes, dict[bytes, bytes]]:
    """The events of these jobs by their ids, oldest first. Reads all events of the batch."""
    wanted = {job_id.encode() for job_id in job_ids}
    found: dict[bytes, dict[bytes, bytes]] = {}
    start, events = "-", keys.batch_events(batch_id)
    while entries := cast(_Entries, connection.xrange(events, start, "+", count=_READ_AT_ONCE)):
        found.update((event_id, fields) for event_id, fields in entries if fields.get(b"job") in wanted)
        start = f"({entries[-1][0].decode()}"
    return found


def take_back(pipe: Pipeline, batch_id: str, ends: Mapping[bytes, Mapping[bytes, bytes]]) -> None:
    """Uncount jobs that are to run again: their last ends count no more, and no event tells of them."""
    if ends:
        pipe.xdel(keys.batch_events(batch_id), *ends)
    for status in {fields[b"job"]: fields.get(b"status", b"") for fields in ends.values()}.values():
        if count := _COUNTS.get(status):
            pipe.hincrby(keys.batch(batch_id), count, -1)
