"""RQ's keys that RQ 3.0 itself has no typed function for, and the types of those that a worker needs, in one place that
is checked when RQ changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rq.defaults import RQ_KEY_PREFIX
from rq.job import Job
from rq.queue import Queue
from rq.registry import (
    CanceledJobRegistry,
    FailedJobRegistry,
    FinishedJobRegistry,
    ReadyJobRegistry,
    StartedJobRegistry,
)
from rq.worker_registration import REDIS_WORKER_KEYS, WORKERS_BY_QUEUE_KEY

from mlxq import keys
from mlxq.queue.broken_keys import Kind

MODEL = "mlxq_model"
"""The field of a worker that names the model it answers with."""

_REGISTRIES = (CanceledJobRegistry, FailedJobRegistry, FinishedJobRegistry, ReadyJobRegistry, StartedJobRegistry)


def results(job_id: str) -> str:
    """The stream of a job's results, the newest last."""
    return f"{RQ_KEY_PREFIX}:results:{job_id}"


def executions(job_id: str) -> str:
    """The sorted set of the executions that workers hold of a job."""
    return f"{RQ_KEY_PREFIX}:executions:{job_id}"


def queue(name: str) -> str:
    """The list of the ids of waiting jobs."""
    return f"{Queue.redis_queue_namespace_prefix}{name}"


def worker(name: str) -> str:
    """The hash that describes a worker."""
    return f"{RQ_KEY_PREFIX}:worker:{name}"


def leases(queue_name: str) -> str:
    """The sorted set of the executions that run, each until when it is leased, in Unix seconds by Redis's clock."""
    return str(StartedJobRegistry.key_template.format(queue_name))


def kinds_for_producer(queue_name: str, job_ids: Iterable[str]) -> dict[str, Kind]:
    """The keys that it takes to put these jobs into a queue, each with its type."""
    kinds: dict[str, Kind] = {queue(queue_name): "list", Queue.redis_queues_keys: "set"}
    return kinds | dict.fromkeys(map(Job.key_for, job_ids), "hash")


def kinds_for_worker(name: str, queues: Sequence[str]) -> dict[str, Kind]:
    """The keys that a worker of these queues uses beside those of single jobs, each with its type."""
    kinds: dict[str, Kind] = {
        REDIS_WORKER_KEYS: "set",
        worker(name): "hash",
        f"{worker(name)}:executions": "set",
        Queue.redis_queues_keys: "set",
    }
    for queue_name in queues:
        kinds |= {queue(queue_name): "list", keys.live(queue_name): "list", keys.delayed(queue_name): "zset"}
        kinds[WORKERS_BY_QUEUE_KEY % queue_name] = "set"
        kinds |= dict.fromkeys((registry.key_template.format(queue_name) for registry in _REGISTRIES), "zset")
    return kinds
