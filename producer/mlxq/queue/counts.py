"""What is counted: the jobs of a batch, as its hash in Redis has them (`mlxq.keys`), and the workers of a queue."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from redis import Redis
from rq.worker_registration import WORKERS_BY_QUEUE_KEY

from mlxq import keys
from mlxq.errors import QueueError
from mlxq.queue.connect import queue_errors, replies_to

logger = logging.getLogger("mlxq")

BatchState = Literal["open", "running", "done", "cancelled"]
"""A batch is open while it is still being enqueued, and may run meanwhile."""


@dataclass(frozen=True, slots=True)
class StopCount:
    """How many finished choices ended this way; `token_id` is `None` where no token ended them."""

    type: str
    token_id: int | None
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCounts:
    """A snapshot of one batch. `created` is in Unix seconds; `stops` has the most frequent first; `name` and `metadata`
    are its producer's."""

    batch_id: str
    queue: str
    created: float
    total: int
    sealed: bool
    cancelled: bool
    num_finished: int
    num_failed: int
    num_cancelled: int
    prompt_tokens: int
    completion_tokens: int
    stops: tuple[StopCount, ...]
    name: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, batch_id: str, fields: Mapping[bytes, bytes]) -> BatchCounts:
        """The counts in a batch's hash.

        Raises:
            QueueError: what is in there are no counts.
        """
        try:
            return _counts(batch_id, {name.decode(): value.decode() for name, value in fields.items()})
        except (ValueError, KeyError) as error:
            key = keys.batch(batch_id)
            raise QueueError(f"the key {key} holds something else than a batch ({error}): delete it") from error

    @property
    def num_ended(self) -> int:
        return self.num_finished + self.num_failed + self.num_cancelled

    @property
    def is_done(self) -> bool:
        return self.sealed and self.num_ended >= self.total

    @property
    def state(self) -> BatchState:
        """In one word."""
        if self.cancelled:
            return "cancelled"
        if not self.sealed:
            return "open"
        return "done" if self.is_done else "running"


def _counts(batch_id: str, fields: Mapping[str, str]) -> BatchCounts:
    """
    Raises:
        ValueError: a field holds something else than a number.
        KeyError: a field is missing.
    """
    stops = [_stop_count(name, value) for name, value in fields.items() if name.startswith("stop:")]
    return BatchCounts(
        batch_id=batch_id,
        queue=fields["queue"],
        created=_finite(fields["created"]),
        total=int(fields["total"]),
        sealed=fields["sealed"] == "1",
        cancelled=fields["cancelled"] == "1",
        num_finished=int(fields.get("finished", 0)),
        num_failed=int(fields.get("failed", 0)),
        num_cancelled=int(fields.get("cancelled_jobs", 0)),
        prompt_tokens=int(fields.get("prompt_tokens", 0)),
        completion_tokens=int(fields.get("completion_tokens", 0)),
        stops=tuple(sorted(stops, key=lambda stop: (-stop.count, stop.type))),
        name=fields.get("name"),
        metadata=_metadata(fields.get("metadata")),
    )


def _metadata(text: str | None) -> dict[str, Any]:
    """Nothing where a stranger has written something else."""
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except (ValueError, RecursionError):
        return {}


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"created is {text}")
    return number


def _stop_count(name: str, value: str) -> StopCount:
    _, stop_type, token_id = name.split(":")
    return StopCount(stop_type, int(token_id) if token_id else None, int(value))


def num_workers(connection: Redis, queue: str) -> int:
    """How many workers are registered on the queue and alive.

    Raises:
        QueueUnavailable: Redis can't be reached.
    """
    with queue_errors(connection), connection.pipeline(transaction=False) as pipe:
        pipe.smembers(WORKERS_BY_QUEUE_KEY % queue)
        [worker_keys] = replies_to(pipe)
        for worker_key in worker_keys or ():
            pipe.exists(worker_key)
        return sum(pipe.execute())


def warn_if_no_worker(connection: Redis, queue: str) -> None:
    """Log a warning if nobody would answer what waits in this queue."""
    if num_workers(connection, queue) == 0:
        logger.warning("no worker serves queue %r yet; waiting for one: mlxq worker --queue %s", queue, queue)
