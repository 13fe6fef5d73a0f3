"""How everything in a Redis stands: all queues with their workers, and all batches, in three round trips at most.

However many there are, since a round trip may take long. Looks only: what RQ's tools did to a batch's jobs shows once
somebody looks at that batch, and what holds something else than it should is said to, and stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from redis import Redis
from rq.job import Job
from rq.queue import Queue
from rq.registry import FailedJobRegistry, StartedJobRegistry
from rq.utils import str_to_date
from rq.worker_registration import REDIS_WORKER_KEYS

from mlxq import keys
from mlxq.errors import QueueError
from mlxq.printable import printable
from mlxq.queue import rq_keys
from mlxq.queue.connect import queue_errors, refuse_cluster_info, replies_to, without_wrong_types
from mlxq.queue.counts import BatchCounts
from mlxq.queue.scripts import source

_WORKER_FIELDS = ("queues", "state", "hostname", "pid", "last_heartbeat")


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker that is alive, as it has described itself; `last_heartbeat` is in RQ's form, by the worker's clock."""

    name: str
    state: str
    hostname: str
    pid: str
    last_heartbeat: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """One queue. A count is `None` where its key holds something of another type.

    `waiting` counts live ones and those that wait to be tried again, too. `oldest_waiting_s` is the age of the job that
    waits in front, by Redis's clock, if that is known.
    """

    name: str
    waiting: int | None
    running: int | None
    failed: int | None
    oldest_waiting_s: float | None
    workers: tuple[WorkerState, ...]


@dataclass(frozen=True, slots=True)
class BrokenBatch:
    """Something that is listed as a batch, and why it is none."""

    batch_id: str
    error: str


@dataclass(frozen=True, slots=True)
class Overview:
    """`batches` has the newest first. `error` says why there is no list of batches."""

    queues: tuple[QueueState, ...]
    batches: tuple[BatchCounts, ...]
    broken: tuple[BrokenBatch, ...]
    error: str | None = None

    def queue(self, name: str) -> QueueState:
        """One of the queues."""
        return next(queue for queue in self.queues if queue.name == name)

    def num_missing(self, counts: BatchCounts) -> int:
        """How many jobs of a batch, at least, are neither counted as ended nor in its queue, nor running."""
        queue = next((queue for queue in self.queues if queue.name == counts.queue), None)
        return 0 if queue is None else max(0, counts.total - counts.num_ended - _num_open(queue))


def overview(connection: Redis, queue: str) -> Overview:
    """How everything stands.

    Args:
        queue: is looked at, too, if nobody has used it yet.

    Raises:
        ConfigError: it is a Redis Cluster.
        QueueUnavailable: Redis can't be reached.
    """
    with queue_errors(connection):
        batch_ids, queue_keys, worker_keys, now = _first_trip(connection)
        found, workers = _second_trip(connection, batch_ids or [], worker_keys)
        batches, broken, gone = _read_batches(found)
        names = _queue_names(queue_keys, batches, workers, queue)
        queues = _third_trip(connection, names, workers, gone, now)
    error = None if batch_ids is not None else f"the key {keys.BATCHES} holds something else than a list of batches"
    return Overview(queues, tuple(batches), tuple(broken), error)


def queue_state(connection: Redis, queue: str) -> QueueState:
    """How one queue stands. Three round trips.

    Raises:
        QueueUnavailable: Redis can't be reached.
    """
    with queue_errors(connection):
        _, _, worker_keys, now = _first_trip(connection)
        _, workers = _second_trip(connection, [], worker_keys)
        [state] = _third_trip(connection, [queue], workers, [], now)
    return state


def _first_trip(connection: Redis) -> tuple[list[bytes] | None, set[bytes], set[bytes], float]:
    with connection.pipeline(transaction=False) as pipe:
        pipe.zrevrange(keys.BATCHES, 0, -1)
        pipe.smembers(Queue.redis_queues_keys)
        pipe.smembers(REDIS_WORKER_KEYS)
        pipe.time()
        pipe.info("cluster")
        *replies, info = pipe.execute(raise_on_error=False)
    refuse_cluster_info(connection, info)
    batch_ids, queue_keys, worker_keys, (now_s, now_us) = without_wrong_types(replies)
    return batch_ids, queue_keys or set(), worker_keys or set(), now_s + now_us / 1e6


_Workers = Mapping[str, Sequence[WorkerState]]
"""By the names of their queues."""


def _second_trip(
    connection: Redis, batch_ids: Sequence[bytes], worker_keys: Iterable[bytes]
) -> tuple[dict[bytes, dict[bytes, bytes] | None], _Workers]:
    worker_keys = sorted(worker_keys)
    with connection.pipeline(transaction=False) as pipe:
        for batch_id in batch_ids:
            pipe.hgetall(_raw(keys.batch(_name(batch_id))))
        for key in worker_keys:
            pipe.hmget(key, *_WORKER_FIELDS)
        replies = replies_to(pipe)
    workers: dict[str, list[WorkerState]] = {}
    for key, fields in zip(worker_keys, replies[len(batch_ids) :], strict=True):
        if fields is None or not any(fields):
            continue  # it has died, or is none
        queues, *rest = (_name(value or b"") for value in fields)
        worker = WorkerState(_name(key).removeprefix(rq_keys.worker("")), *rest)
        for name in queues.split(","):
            workers.setdefault(name, []).append(worker)
    return dict(zip(batch_ids, replies[: len(batch_ids)], strict=True)), workers


def _third_trip(
    connection: Redis, queues: Sequence[str], workers: _Workers, gone: Sequence[bytes], now: float
) -> tuple[QueueState, ...]:
    script = source("queue_state")
    with connection.pipeline(transaction=False) as pipe:
        for name in queues:
            registries = (StartedJobRegistry.key_template.format(name), FailedJobRegistry.key_template.format(name))
            of_queue = map(_raw, (rq_keys.queue(name), keys.live(name), keys.delayed(name), *registries))
            pipe.eval(script, 5, *of_queue, Job.key_for(""))
        if gone:
            pipe.zrem(keys.BATCHES, *gone)
        replies = pipe.execute(raise_on_error=False)[: len(queues)]  # a list that can't be tidied can be read
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return tuple(
        QueueState(
            name=printable(name),
            waiting=None if waiting < 0 else waiting + max(0, live) + max(0, delayed),
            running=None if running < 0 else running,
            failed=None if failed < 0 else failed,
            oldest_waiting_s=_age_s(enqueued_at, now),
            workers=tuple(workers.get(name, ())),
        )
        for name, (waiting, live, delayed, running, failed, enqueued_at) in zip(queues, replies, strict=True)
    )


def _read_batches(
    found: Mapping[bytes, dict[bytes, bytes] | None],
) -> tuple[list[BatchCounts], list[BrokenBatch], list[bytes]]:
    """Those that can be read, those that can't, and those that have expired."""
    batches, broken, gone = [], [], []
    for raw_id, fields in found.items():
        batch_id = _name(raw_id)
        if fields is None:
            broken.append(BrokenBatch(batch_id, f"the key {keys.batch(batch_id)} holds something else than a batch"))
        elif not fields:
            gone.append(raw_id)
        else:
            try:
                batches.append(BatchCounts.read(batch_id, fields))
            except QueueError as error:
                broken.append(BrokenBatch(batch_id, str(error)))
    return batches, broken, gone


def _queue_names(
    queue_keys: Iterable[bytes], batches: Iterable[BatchCounts], workers: _Workers, queue: str
) -> list[str]:
    prefix = rq_keys.queue("")
    listed = {_name(key).removeprefix(prefix) for key in queue_keys if _name(key).startswith(prefix)}
    return sorted(listed | {counts.queue for counts in batches} | set(workers) | {queue})


def _num_open(queue: QueueState) -> int:
    return (queue.waiting or 0) + (queue.running or 0)


def _age_s(enqueued_at: bytes, now: float) -> float | None:
    try:
        return max(0.0, now - str_to_date(enqueued_at).timestamp()) if enqueued_at else None
    except ValueError:
        return None


def _name(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")


def _raw(name: str) -> bytes:
    """The inverse of `_name`: a stranger's name may be no text."""
    return name.encode(errors="surrogateescape")
