"""Figures as Prometheus's metric families. Needs prometheus-client, and serves nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector, CollectorRegistry

from mlxq.metrics.figures import Snapshot
from mlxq.metrics.metric import Metric


class Table(Collector):
    """The metrics of a table, with the figures that there are whenever somebody asks.

    Args:
        metrics: others are not told of.
        look: the figures now.
        common: labels of all of them and their values.
    """

    def __init__(
        self, metrics: Sequence[Metric], look: Callable[[], Snapshot], common: dict[str, str] | None = None
    ) -> None:
        self._metrics = metrics
        self._look = look
        self._common = common or {}

    def collect(self) -> Iterable[Family]:
        """Asked by prometheus-client."""
        return families(self._metrics, self._look(), self._common)


class Joined(Collector):
    """Several tables of the same metrics, each with other values of its common labels."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self._tables = tables

    def collect(self) -> Iterable[Family]:
        """Asked by prometheus-client."""
        for first, *others in zip(*(table.collect() for table in self._tables), strict=True):
            for other in others:
                first.samples.extend(other.samples)
            yield first


def registry_of(*tables: Collector) -> CollectorRegistry:
    """What the server asks: all tables, without what prometheus-client adds of itself."""
    registry = CollectorRegistry()
    for table in tables:
        registry.register(table)
    return registry


def families(metrics: Iterable[Metric], snapshot: Snapshot, common: dict[str, str]) -> Iterator[Family]:
    """One family for each metric. A counter or histogram without labels, of which nothing was recorded yet, is 0: its
    rate would else miss the first step."""
    for metric in metrics:
        match metric.kind:
            case "counter":
                yield _counter(metric, snapshot, common)
            case "gauge":
                yield _gauge(metric, snapshot, common)
            case "histogram":
                yield _histogram(metric, snapshot, common)


def _counter(metric: Metric, snapshot: Snapshot, common: dict[str, str]) -> Family:
    family = CounterMetricFamily(metric.full_name, metric.help, labels=[*common, *metric.labels])
    numbers = {number.labels: number.value for number in snapshot.numbers if number.name == metric.name}
    if not metric.labels:
        numbers.setdefault((), 0)
    for labels, value in numbers.items():
        family.add_metric([*common.values(), *labels], value)
    return family


def _gauge(metric: Metric, snapshot: Snapshot, common: dict[str, str]) -> Family:
    family = GaugeMetricFamily(metric.full_name, metric.help, labels=[*common, *metric.labels])
    for number in snapshot.numbers:
        if number.name == metric.name:
            family.add_metric([*common.values(), *number.labels], number.value)
    return family


def _histogram(metric: Metric, snapshot: Snapshot, common: dict[str, str]) -> Family:
    family = HistogramMetricFamily(metric.full_name, metric.help, labels=[*common, *metric.labels])
    bounds = [*map(str, metric.buckets), "+Inf"]
    spreads = {
        spread.labels: (spread.counts, spread.total) for spread in snapshot.spreads if spread.name == metric.name
    }
    if not metric.labels:
        spreads.setdefault((), ((0,) * len(bounds), 0.0))
    for labels, (counts, total) in spreads.items():
        buckets = [(bound, float(count)) for bound, count in zip(bounds, accumulate(counts), strict=True)]
        family.add_metric([*common.values(), *labels], buckets, total)
    return family
