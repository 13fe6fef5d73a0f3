"""Deletes a batch with all that is in it: jobs, answers, events, counts. Only one of which no job waits or runs.

Touches nothing but the keys of that batch and its jobs' entries in RQ's registries.
"""

from __future__ import annotations

from collections.abc import Iterable

from redis import Redis
from rq.job import Job
from rq.registry import CanceledJobRegistry, FailedJobRegistry, FinishedJobRegistry

from mlxq import keys
from mlxq.queue import rq_keys


def delete_jobs(connection: Redis, queue: str, job_ids: Iterable[str]) -> None:
    """Delete ended jobs and their answers; one round trip."""
    ids = list(job_ids)
    with connection.pipeline() as pipe:
        pipe.unlink(*map(Job.key_for, ids), *map(rq_keys.results, ids))
        for registry in (FinishedJobRegistry, FailedJobRegistry, CanceledJobRegistry):
            pipe.zrem(registry(queue, connection=connection).key, *ids)
        pipe.execute()


def delete_description(connection: Redis, batch_id: str) -> None:
    """Delete what is known of the batch itself."""
    with connection.pipeline() as pipe:
        pipe.unlink(keys.batch(batch_id), keys.batch_jobs(batch_id), keys.batch_events(batch_id))
        pipe.zrem(keys.BATCHES, batch_id)
        pipe.execute()
