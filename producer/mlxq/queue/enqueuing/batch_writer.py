"""Puts jobs into a batch and its queue: each once, whoever adds them, and those again that Redis has lost.

Knows nothing of what is in a job, nor of how many a batch may have.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any, cast

from redis import Redis
from redis.client import Pipeline
from rq.job import Job

from mlxq import keys
from mlxq.errors import QueueError
from mlxq.queue import rq_keys
from mlxq.queue.broken_keys import kinds_of_batch, mend, naming
from mlxq.queue.connect import queue_errors, transact
from mlxq.queue.enqueuing.job_data import NewJob, enqueue
from mlxq.queue.reconcile import ends_of, gone, take_back

logger = logging.getLogger("mlxq")


class BatchWriter:
    """Writes one batch, which comes into being with that.

    Args:
        about: what its hash says beside its counts, if it is new.
    """

    def __init__(self, connection: Redis, batch_id: str, queue: str, about: Mapping[str, str]) -> None:
        self._redis = connection
        self._batch_id = batch_id
        self._queue = queue
        self._about = about

    def add(self, jobs: Mapping[str, NewJob]) -> int:
        """Enqueue those of these jobs, by their ids, that the batch doesn't have, or that Redis has lost. Returns how
        many. Those that are new are enqueued all or none.

        Raises:
            QueueUnavailable: Redis can't be reached.
            QueueError: the batch is cancelled, or in another queue.
        """
        with queue_errors(self._redis):
            self._make_room(jobs)
            self._check_open()
            with self._redis.pipeline() as pipe:
                self._describe(pipe)
                enqueue(pipe, self._queue, self._batch_id, jobs.values())
                known = [job_id.decode() for job_id in cast("list[bytes]", pipe.execute()[-1])]
            return len(jobs) - len(known) + self._add_again({job_id: jobs[job_id] for job_id in known})

    def seal(self) -> None:
        """Say that everything is enqueued."""
        with queue_errors(self._redis), self._redis.pipeline() as pipe:
            self._make_room(())
            self._describe(pipe)
            pipe.hset(keys.batch(self._batch_id), "sealed", "1")
            pipe.execute()

    def _add_again(self, jobs: Mapping[str, NewJob]) -> int:
        """Those that Redis has no longer. Nobody else may add, record or forget them meanwhile."""
        if not (lost := gone(self._redis, list(jobs))):
            return 0
        watched = [keys.batch_jobs(self._batch_id), keys.batch_events(self._batch_id), *map(Job.key_for, lost)]

        def change(pipe: Pipeline) -> int:
            still_lost = gone(pipe, lost)
            ends = ends_of(pipe, self._batch_id, still_lost) if still_lost else {}
            pipe.multi()
            self._describe(pipe)
            take_back(pipe, self._batch_id, ends)
            enqueue(pipe, self._queue, self._batch_id, [jobs[job_id] for job_id in still_lost], again=True)
            return len(still_lost)

        return transact(self._redis, change, *watched)

    def _make_room(self, job_ids: Iterable[str]) -> None:
        """What a stranger has put under a key would be refused in the middle of a transaction, whose other commands
        count all the same."""
        kinds = rq_keys.kinds_for_producer(self._queue, job_ids)
        kinds |= {
            key: kind for key, kind in kinds_of_batch(self._batch_id).items() if key != keys.batch(self._batch_id)
        }
        kinds[keys.BATCHES] = "zset"
        for broken in mend(self._redis, kinds):
            logger.warning("%s", broken)

    def _check_open(self) -> None:
        batch = keys.batch(self._batch_id)
        with naming(self._redis, kinds_of_batch(self._batch_id)):
            queue, cancelled = cast("list[bytes | None]", self._redis.hmget(batch, "queue", "cancelled"))
        if queue is not None and queue.decode() != self._queue:
            raise QueueError(f"batch {self._batch_id!r} is in queue {queue.decode()!r}, not in {self._queue!r}")
        if cancelled == b"1":
            raise QueueError(f"batch {self._batch_id!r} is cancelled; use another batch id")

    def _describe(self, pipe: Pipeline) -> None:
        now, batch = time.time(), keys.batch(self._batch_id)
        initial: dict[str, Any] = {"queue": self._queue, "created": now, "total": 0, "sealed": 0, "cancelled": 0}
        initial |= self._about
        for name, value in initial.items():
            pipe.hsetnx(batch, name, str(value))
        pipe.zadd(keys.BATCHES, {self._batch_id: now}, nx=True)
        for key in (batch, keys.batch_jobs(self._batch_id), keys.batch_events(self._batch_id)):
            pipe.expire(key, keys.BATCH_TTL_S)
