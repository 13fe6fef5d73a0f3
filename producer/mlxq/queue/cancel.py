"""Ends queued jobs in place: two atomic scripts (`lua/`), each linear in what it is given.

`take_out` removes a batch's ids from the queue in one pass, so that cancelling n jobs is not n scans of the
queue; `end_queued` then gives each job that still waits its error line, its event and its count. Running jobs end
where they run: `stop_running` takes one from its worker, which then drops the row and writes what there is.
"""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Sequence
from typing import cast

import msgspec
from redis import Redis
from redis.client import Pipeline
from rq.job import Job
from rq.queue import Queue
from rq.registry import CanceledJobRegistry
from rq.serializers import JSONSerializer
from rq.utils import now, utcformat

from mlxq import keys
from mlxq.contract import Failure
from mlxq.queue import rq_keys
from mlxq.queue.connect import replies_to, transact
from mlxq.queue.scripts import source
from mlxq.results.result_lines import failure_line


def take_out(connection: Redis, queue: str, batch_id: str) -> int:
    """Remove a batch's ids from the queue, whoever else's ids are between them. Returns how many there were."""
    prefix = keys.job_prefix(batch_id)
    key = Queue(queue, connection=connection).key
    # Not by its hash, here and below: an unknown one is an error, after which the embedded server hangs up.
    return cast(int, connection.eval(source("take_out"), 1, key, prefix, len(prefix) + keys.JOB_DIGEST_LENGTH))


def end_queued(connection: Redis, queue: str, batch_id: str, job_ids: Sequence[str], *, code: str, message: str) -> int:
    """End those of `job_ids` that still wait, with an error line each. Two round trips. Returns how many."""
    metas = _metas(connection, job_ids)
    registry = CanceledJobRegistry(queue, connection=connection)
    script_keys = [keys.batch(batch_id), keys.batch_jobs(batch_id), keys.batch_events(batch_id), registry.key]
    args: list[str | int | float] = [time.time(), utcformat(now()), keys.FAILURE_TTL_S, keys.BATCH_TTL_S]
    for job_id, meta in metas.items():
        custom_id = msgspec.json.decode(meta)["custom_id"]
        failure = Failure(custom_id=custom_id, request_id=job_id, code=code, message=message)
        script_keys += [Job.key_for(job_id), rq_keys.results(job_id)]
        args += [job_id, b64encode(msgspec.json.encode(failure_line(failure))).decode()]
    return cast(int, connection.eval(source("end_queued"), len(script_keys), *script_keys, *args))


def stop_running(connection: Redis, job_id: str) -> bool:
    """Mark a running job as cancelled, so that its worker drops the row. `False` if it isn't running."""

    def mark(pipe: Pipeline) -> bool:
        if cast("bytes | None", pipe.hget(key, "status")) != b"started":
            return False
        job = Job.fetch(job_id, connection=connection, serializer=JSONSerializer)
        pipe.multi()
        job.cancel(pipeline=pipe)
        return True

    key = Job.key_for(job_id)
    return transact(connection, mark, key)


def _metas(connection: Redis, job_ids: Sequence[str]) -> dict[str, bytes]:
    """The meta of the jobs that wait; a first look, which the script repeats atomically."""
    with connection.pipeline(transaction=False) as pipe:
        for job_id in job_ids:
            pipe.hmget(Job.key_for(job_id), "status", "meta")
        replies = replies_to(pipe)
    return {
        job_id: reply[1]
        for job_id, reply in zip(job_ids, replies, strict=True)
        if reply is not None and reply[0] == b"queued" and reply[1] is not None
    }
