"""Looks at the queues of a Redis and says how they stand, as figures. Serves nothing."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection
from threading import Lock
from typing import get_args

from redis import Redis

from mlxq.errors import MlxqError
from mlxq.metrics.figures import Figures, Snapshot
from mlxq.metrics.queue_table import (
    BATCH_JOBS,
    BATCHES,
    BROKEN_BATCHES,
    JOB_COUNT,
    OLDEST_BATCH,
    OLDEST_WAITING,
    REDIS_UP,
    WORKERS,
)
from mlxq.printable import printable
from mlxq.queue.counts import BatchCounts, BatchState
from mlxq.queue.overview import Overview, QueueState, overview

logger = logging.getLogger("mlxq")

SCRAPE_TIMEOUT_S = 3.0
"""For a connection that scrapes wait for; Prometheus gives up after ten seconds."""
KEEP_S = 1.0
"""Several scrapers at once cost Redis one look."""
WORKER_STATES = ("idle", "busy", "suspended")


class QueueFigures:
    """What a Redis says of its queues, looked up when somebody asks. Thread-safe.

    Args:
        connection: its timeouts bound how long one asks.
        queues: of these; the first one is told of even if nobody has used it yet. None: of all there are.
        clock: seconds, for how long an answer is kept.
    """

    def __init__(
        self, connection: Redis, queues: Collection[str] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._redis = connection
        self._queues = tuple(queues)
        self._clock = clock
        self._lock = Lock()
        self._asked_at = float("-inf")
        self._last = Snapshot()

    def snapshot(self) -> Snapshot:
        """How everything stands; without Redis, that it is away."""
        with self._lock:
            if self._clock() - self._asked_at >= KEEP_S:
                self._last = self._look()
                self._asked_at = self._clock()
            return self._last

    def _look(self) -> Snapshot:
        figures = Figures()
        try:
            found = overview(self._redis, self._queues[0] if self._queues else "")
        except MlxqError as error:
            logger.debug("The queues can't be looked at: %s", error)
            figures.set(REDIS_UP, 0)
        else:
            figures.set(REDIS_UP, 1)
            self._record(found, figures)
        return figures.snapshot()

    def _record(self, found: Overview, figures: Figures) -> None:
        for state in found.queues:
            if state.name and (not self._queues or state.name in self._queues):
                record_queue(state, figures)
                record_batches(state.name, [batch for batch in found.batches if batch.queue == state.name], figures)
        figures.set(BROKEN_BATCHES, len(found.broken))


def record_queue(state: QueueState, figures: Figures) -> None:
    """One queue. What can't be told, as its key holds something else than it should, is left out."""
    for name, count in (("waiting", state.waiting), ("running", state.running), ("failed", state.failed)):
        if count is not None:
            figures.set(JOB_COUNT, count, state.name, name)
    figures.set(OLDEST_WAITING, state.oldest_waiting_s or 0.0, state.name)
    workers = Counter(printable(worker.state) for worker in state.workers)
    for name in WORKER_STATES:
        figures.set(WORKERS, workers[name], state.name, name)


def record_batches(queue: str, batches: Collection[BatchCounts], figures: Figures) -> None:
    """All batches of one queue together: a label for each would never be forgotten."""
    states = Counter(batch.state for batch in batches)
    for state in get_args(BatchState):
        figures.set(BATCHES, states[state], queue, state)
    outcomes = {
        "pending": sum(max(0, batch.total - batch.num_ended) for batch in batches),
        "finished": sum(batch.num_finished for batch in batches),
        "failed": sum(batch.num_failed for batch in batches),
        "cancelled": sum(batch.num_cancelled for batch in batches),
    }
    for outcome, count in outcomes.items():
        figures.set(BATCH_JOBS, count, queue, outcome)
    unfinished = [batch.created for batch in batches if batch.state in ("open", "running")]
    figures.set(OLDEST_BATCH, max(0.0, time.time() - min(unfinished)) if unfinished else 0.0, queue)
