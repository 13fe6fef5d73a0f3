"""The values of metrics as plain numbers: what is recorded while work is done costs a look into a dict, and no lock.

A `Figures` belongs to one thread. What others get is a `Snapshot` of it: frozen, and small enough to be sent to another
process every second. Knows nothing of Prometheus.
"""

from __future__ import annotations

from bisect import bisect_left

import msgspec

from mlxq.metrics.metric import Metric

_Key = tuple[str, tuple[str, ...]]


class Number(msgspec.Struct, frozen=True, array_like=True):
    """The value of a counter or a gauge. `name` is the metric's, without prefix."""

    name: str
    labels: tuple[str, ...]
    value: float


class Spread(msgspec.Struct, frozen=True, array_like=True):
    """The values of a histogram: how many fell into each bucket, the last of which has no bound, and their sum."""

    name: str
    labels: tuple[str, ...]
    counts: tuple[int, ...]
    total: float


class Snapshot(msgspec.Struct, frozen=True):
    """Figures at one moment."""

    numbers: tuple[Number, ...] = ()
    spreads: tuple[Spread, ...] = ()

    def beside(self, other: Snapshot) -> Snapshot:
        """Both in one; they have no value in common."""
        return Snapshot(self.numbers + other.numbers, self.spreads + other.spreads)


class Figures:
    """Counts, levels and distributions. Whoever records names the metric, so a wrong name is an error at once."""

    def __init__(self) -> None:
        self._numbers: dict[_Key, float] = {}
        self._counts: dict[_Key, list[int]] = {}
        self._totals: dict[_Key, float] = {}

    def add(self, metric: Metric, amount: float = 1, *labels: str) -> None:
        """Count so many more."""
        key = (metric.name, labels)
        self._numbers[key] = self._numbers.get(key, 0) + amount

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """The level is this now."""
        self._numbers[metric.name, labels] = value

    def value(self, metric: Metric, *labels: str) -> float:
        """What a counter or a gauge stands at; 0 if nothing was recorded."""
        return self._numbers.get((metric.name, labels), 0)

    def observe(self, metric: Metric, value: float, weight: int = 1, *labels: str) -> None:
        """So many of them had this value."""
        key = (metric.name, labels)
        if (counts := self._counts.get(key)) is None:
            counts = self._counts[key] = [0] * (len(metric.buckets) + 1)
        counts[bisect_left(metric.buckets, value)] += weight
        self._totals[key] = self._totals.get(key, 0.0) + value * weight

    def snapshot(self) -> Snapshot:
        """All of it, for others."""
        spreads = ((*key, tuple(counts), self._totals[key]) for key, counts in self._counts.items())
        return Snapshot(
            tuple(Number(name, labels, value) for (name, labels), value in self._numbers.items()),
            tuple(Spread(*spread) for spread in spreads),
        )
