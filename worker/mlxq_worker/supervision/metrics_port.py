"""The port of a worker: its own figures and those of its queues, whether it is alive, and whether it is ready.

Opened by the process that looks after the one with the model, so that a scrape is answered while that is started again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version

from mlxq.metrics.address import Address
from mlxq.metrics.exposition import Joined, Table, registry_of
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
    return open_models_port(address, {model: totals}, queue_figures, queues, totals.why_not_ready)


def open_models_port(
    address: Address,
    totals: Mapping[str, Totals],
    queue_figures: QueueFigures,
    queues: Iterable[str],
    why_not_ready: Callable[[], str | None],
) -> MetricsServer:
    """Likewise for several models that take turns, each with its own figures.

    Args:
        totals: by model.
        why_not_ready: what keeps requests from being answered; `None` if nothing does.

    Raises:
        ConfigError: nobody can listen there.
    """
    info = Snapshot((Number(WORKER_INFO.name, (_version(), ",".join(queues)), 1),))
    one = next(iter(totals.values()))  # the supervisor turns for all of them

    def health() -> Verdict:
        return Verdict(one.idle_s < TURN_S, {"idle_s": round(one.idle_s, 1)})

    def ready() -> Verdict:
        why_not = why_not_ready()
        return Verdict(why_not is None, {} if why_not is None else {"reason": why_not})

    def table(model: str, of_model: Totals) -> Table:
        return Table(WORKER_METRICS, lambda: of_model.snapshot().beside(info), {"model_name": model})

    registry = registry_of(
        Joined([table(model, of_model) for model, of_model in totals.items()]),
        Table(QUEUE_METRICS, queue_figures.snapshot),
    )
    return MetricsServer(address, registry, health=health, ready=ready)


def _version() -> str:
    try:
        return version("mlxq")
    except PackageNotFoundError:  # run from its source tree
        return "unknown"
