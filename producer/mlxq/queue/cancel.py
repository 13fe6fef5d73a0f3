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
from rq.job import Job
from rq.queue import Queue
from rq.registry import CanceledJobRegistry, StartedJobRegistry
from rq.utils import now, utcformat

from mlxq import keys
from mlxq.contract import Failure
from mlxq.queue import rq_keys
from mlxq.queue.connect import replies_to
from mlxq.queue.scripts import source
from mlxq.results.result_lines import failure_line


def ask_to_cancel(connection: Redis, batch_id: str) -> bool:
    """Have workers drop what they hold of a batch. `False` if there is no such batch."""
    return bool(connection.eval(source("set_flag"), 1, keys.batch(batch_id), "cancelled"))


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


def stop_running(connection: Redis, queue: str, job_id: str) -> bool:
    """Mark a running job as cancelled, so that its worker drops the row. `False` if it isn't running."""

    script_keys = [
        Job.key_for(job_id),
        rq_keys.executions(job_id),
        StartedJobRegistry(queue, connection=connection).key,
        CanceledJobRegistry(queue, connection=connection).key,
        Queue(queue, connection=connection).key,
    ]
    return bool(connection.eval(source("stop_running"), len(script_keys), *script_keys, job_id, time.time()))


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
