"""What RQ keeps of our jobs: written as RQ would, whose own objects and commands take several times as long, and read.

What the hash of a job must have is RQ 3.0's `Job.to_dict`, what its data are is RQ's JSONSerializer's; a test compares.
Knows nothing of batches but a key.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
from redis import Redis
from redis.client import Pipeline
from rq.job import Job
from rq.queue import Queue
from rq.utils import utcformat

from mlxq import keys
from mlxq.errors import RequestError
from mlxq.queue import rq_keys
from mlxq.queue.connect import replies_to
from mlxq.queue.scripts import source
from mlxq.requests.normal_form import content_hash

MAX_RETRIES = 3
"""Times that a job whose worker died goes back to the queue."""

_ONE_LINE = "mlxq request"
"""RQ's job description; its default would be the start of the prompt, in Redis and in logs."""
_EMPTY = (
    "success_callback_name",
    "failure_callback_name",
    "stopped_callback_name",
    "started_at",
    "ended_at",
    "last_heartbeat",
    "worker_name",
    "group_id",
)
_SMALL_BYTES = 4096


class NewJob(NamedTuple):
    """A job that is to be: its number in the batch, what it is called there, and what its worker gets."""

    id: str
    number: int
    custom_id: str
    payload: dict[str, Any]


def enqueue(pipe: Pipeline, queue: str, batch_id: str, jobs: Collection[NewJob], *, again: bool = False) -> None:
    """Add the command that puts these jobs into the queue and into the batch. Its reply are the ids, as bytes, of those
    that the batch has: they stay as they are, unless they are put into the queue `again`, since they are gone."""
    alike = _alike(queue)
    hashes = [Job.key_for(job.id) for job in jobs]
    script_keys = [Queue.redis_queues_keys, rq_keys.queue(queue), keys.batch_jobs(batch_id), keys.batch(batch_id)]
    args = [int(again), len(alike) // 2, *alike, *(value for job in jobs for value in _arguments(job, batch_id))]
    pipe.eval(source("enqueue"), len(script_keys) + len(hashes), *script_keys, *hashes, *args)


def _alike(queue: str) -> list[str | int]:
    now = utcformat(datetime.now(UTC))
    fields: dict[str, str | int] = {
        **dict.fromkeys(_EMPTY, ""),
        "created_at": now,
        "enqueued_at": now,
        "origin": queue,
        "description": _ONE_LINE,
        "status": "queued",
        "timeout": -1,
        "result_ttl": keys.RESULT_TTL_S,
        "failure_ttl": keys.FAILURE_TTL_S,
        "retries_left": MAX_RETRIES,
        "retry_intervals": "[0]",
    }
    return [part for field in fields.items() for part in field]


def _arguments(job: NewJob, batch_id: str) -> Iterator[str | int | bytes]:
    yield job.id
    yield job.number
    yield _compressed(msgspec.json.encode([keys.FUNCTION_NAME, None, [job.payload], {}]))
    yield msgspec.json.encode({"custom_id": job.custom_id, "batch": batch_id})


def _compressed(data: bytes) -> bytes:
    """What `zlib.decompress` reads. For a short text zlib takes longer to set up its usual tables than to use them."""
    if len(data) > _SMALL_BYTES:
        return zlib.compress(data)
    packer = zlib.compressobj(wbits=12, memLevel=4)
    return packer.compress(data) + packer.flush()


class _Payload(msgspec.Struct):
    url: str
    body: dict[str, Any]


_Call = tuple[str, str | None, tuple[_Payload], dict[str, Any]]
"""Function, instance, arguments and keyword arguments."""


def content_hashes(connection: Redis, job_ids: Sequence[str]) -> list[str | None]:
    """The hash of each job's request; `None` where the job is gone, or holds something else. One round trip."""
    with connection.pipeline(transaction=False) as pipe:
        for job_id in job_ids:
            pipe.hget(Job.key_for(job_id), "data")
        return [_hash_in(data) for data in replies_to(pipe)]


def _hash_in(data: bytes | None) -> str | None:
    try:
        _, _, [payload], _ = msgspec.json.decode(zlib.decompress(data or b""), type=_Call)
    except (ValueError, RecursionError, zlib.error):
        return None
    try:
        return content_hash(payload.url, payload.body)
    except RequestError:  # a stranger's
        return None
