"""What a worker's figures come to over all its processes, and whether it is alive and ready.

Counts start anew in every process; here they go on, so that a death looks like a pause and not like a step back. Told
by the supervisor's thread, asked by those that answer scrapes. Knows no processes and serves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock
from typing import Literal, get_args

from mlxq.metrics.figures import Figures, Number, Snapshot, Spread
from mlxq_worker.metrics.table import (
    GENERATION_TOKENS,
    REPORT_AGE,
    RESTARTS,
    ROWS_COMPUTED,
    WORKER_METRICS,
    WORKER_REDIS_UP,
    WORKER_UP,
)

RestartReason = Literal["died", "recycled", "no_redis"]

FRESH_S = 15.0
"""Reports come every second. One that is older tells of a process that hangs, or is very busy."""
TURN_S = 30.0
"""A supervisor looks around ten times a second."""

_LEVELS = frozenset(metric.name for metric in WORKER_METRICS if metric.kind == "gauge")


class Totals:
    """One worker in all its lives. Thread-safe.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._before = Snapshot()
        self._now = Snapshot()
        self._own = Figures()
        self._is_up: bool | None = False
        self._reported_at: float | None = None
        self._turned_at = clock()
        for reason in get_args(RestartReason):
            self._own.add(RESTARTS, 0, reason)

    def turned(self) -> None:
        """The supervisor has looked around."""
        self._turned_at = self._clock()

    def is_up(self, is_up: bool) -> None:
        """Whether the process runs and has its model."""
        with self._lock:
            self._is_up = is_up

    def reported(self, snapshot: Snapshot) -> None:
        """The process has sent its newest figures."""
        with self._lock:
            self._now = snapshot
            self._reported_at = self._clock()

    def ended(self) -> None:
        """The process is gone: what it has counted stays, and what it held is no more."""
        with self._lock:
            self._before = _added(self._before, self._now)
            self._now = Snapshot()
            self._is_up = False
            self._reported_at = None

    def rests(self) -> None:
        """It is not this worker's turn: nobody is to wait for its process."""
        with self._lock:
            self._is_up = None

    def restarts(self, reason: RestartReason) -> None:
        """It will be started again."""
        with self._lock:
            self._own.add(RESTARTS, 1, reason)

    def snapshot(self) -> Snapshot:
        """All figures now."""
        with self._lock:
            summed = _added(self._before, self._now)
            levels = [number for number in self._now.numbers if number.name in _LEVELS]
            if self._is_up is not None:
                levels.append(Number(WORKER_UP.name, (), int(self._is_up)))
            if (age_s := self._age_s()) is not None:
                levels.append(Number(REPORT_AGE.name, (), age_s))
            return Snapshot((*summed.numbers, *levels), summed.spreads).beside(self._own.snapshot())

    def rows(self) -> tuple[float, float]:
        """Tokens that were kept, and rows that were computed for them, in all its lives."""
        with self._lock:
            counts = {number.name: number.value for number in _added(self._before, self._now).numbers}
        return counts.get(GENERATION_TOKENS.name, 0), counts.get(ROWS_COMPUTED.name, 0)

    @property
    def idle_s(self) -> float:
        """Since the supervisor has looked around."""
        return self._clock() - self._turned_at

    def why_not_ready(self) -> str | None:
        """What keeps the worker from taking jobs now; `None` if nothing does."""
        with self._lock:
            age_s = self._age_s()
            if not self._is_up:
                return "the process with the model isn't running, or hasn't loaded it yet"
            if age_s is None or age_s > FRESH_S:
                return "the process with the model hasn't reported lately"
            if any(number.name == WORKER_REDIS_UP.name and not number.value for number in self._now.numbers):
                return "Redis is away, or can't do what it is asked"
            return None

    def _age_s(self) -> float | None:
        return None if self._reported_at is None else self._clock() - self._reported_at


def _added(one: Snapshot, other: Snapshot) -> Snapshot:
    """The sums of what is counted; levels are left out."""
    counts: dict[tuple[str, tuple[str, ...]], float] = {}
    for number in (*one.numbers, *other.numbers):
        if number.name not in _LEVELS:
            key = (number.name, number.labels)
            counts[key] = counts.get(key, 0) + number.value
    spreads: dict[tuple[str, tuple[str, ...]], Spread] = {}
    for spread in (*one.spreads, *other.spreads):
        key = (spread.name, spread.labels)
        spreads[key] = _joined(spreads[key], spread) if key in spreads else spread
    return Snapshot(tuple(Number(*key, value) for key, value in counts.items()), tuple(spreads.values()))


def _joined(one: Spread, other: Spread) -> Spread:
    counts = tuple(map(sum, zip(one.counts, other.counts, strict=True)))
    return Spread(one.name, one.labels, counts, one.total + other.total)
