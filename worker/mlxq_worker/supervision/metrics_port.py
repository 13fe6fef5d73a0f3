"""The port of a worker: its own figures and those of its queues, whether it is alive, and whether it is ready.

Opened by the process that looks after the one with the model, so that a scrape is answered while that is started again.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from mlxq.metrics.address import Address
from mlxq.metrics.exposition import Table, registry_of
from mlxq.metrics.figures import Number, Snapshot
from mlxq.metrics.queue_figures import QueueFigures
from mlxq.metrics.queue_table import QUEUE_METRICS
from mlxq.metrics.server import MetricsServer, Verdict
from mlxq_worker.metrics.table import WORKER_INFO, WORKER_METRICS
from mlxq_worker.supervision.totals import TURN_S, Totals


def open_port(
    address: Address, totals: Totals, queue_figures: QueueFigures, *, model: str, queues: Iterable[str]
) -> MetricsServer:
    """The server, which answers inside its `with` block.

    Raises:
        ConfigError: nobody can listen there.
    """
    info = Snapshot((Number(WORKER_INFO.name, (_version(), ",".join(queues)), 1),))

    def health() -> Verdict:
        return Verdict(totals.idle_s < TURN_S, {"idle_s": round(totals.idle_s, 1)})

    def ready() -> Verdict:
        why_not = totals.why_not_ready()
        return Verdict(why_not is None, {} if why_not is None else {"reason": why_not})

    registry = registry_of(
        Table(WORKER_METRICS, lambda: totals.snapshot().beside(info), {"model_name": model}),
        Table(QUEUE_METRICS, queue_figures.snapshot),
    )
    return MetricsServer(address, registry, health=health, ready=ready)


def _version() -> str:
    try:
        return version("mlxq")
    except PackageNotFoundError:  # run from its source tree
        return "unknown"
