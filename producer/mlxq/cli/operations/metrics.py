"""`mlxq metrics`: the state of the queues for Prometheus, from any machine that reaches Redis."""

from __future__ import annotations

import signal
import threading

import click

from mlxq.cli import options
from mlxq.cli.operations.address import AddressType
from mlxq.cli.terminal import say, tell
from mlxq.metrics.address import Address
from mlxq.queue.connect import DEFAULT_URL, connect

DEFAULT_PORT = 9400
POLL_S = 0.5


@click.command(context_settings=options.SETTINGS)
@click.option(
    "--metrics-port",
    "address",
    envvar="MLXQ_METRICS_PORT",
    type=AddressType(),
    default=str(DEFAULT_PORT),
    help="Serve at this port of 127.0.0.1, or at HOST:PORT to be seen from other machines.",
)
@click.option(
    "--queue", "queues", multiple=True, envvar="MLXQ_QUEUE", help="Only this queue; may be repeated.  [default: all]"
)
@click.option("--once", is_flag=True, help="Print what would be served, and end.")
@options.url
def metrics(address: Address, queues: tuple[str, ...], once: bool, url: str | None) -> None:
    """Serve how the queues of a Redis stand, at /metrics, until SIGTERM or SIGINT.

    Needs no worker and no model: how many jobs wait, run and have failed, for how long the first has waited, the
    batches, and the workers that are alive. /health says that this process works, /ready that Redis answers it.

    Example: mlxq metrics --metrics-port 0.0.0.0:9400
    """
    from mlxq.metrics.exposition import Table, registry_of
    from mlxq.metrics.queue_figures import SCRAPE_TIMEOUT_S, QueueFigures
    from mlxq.metrics.queue_table import QUEUE_METRICS, REDIS_UP
    from mlxq.metrics.server import MetricsServer, Verdict

    with connect(url or DEFAULT_URL, timeout_s=SCRAPE_TIMEOUT_S) as connection:
        figures = QueueFigures(connection, queues)
        registry = registry_of(Table(QUEUE_METRICS, figures.snapshot))
        if once:
            from prometheus_client import generate_latest

            say(generate_latest(registry).decode().rstrip("\n"))
            return

        def ready() -> Verdict:
            is_up = any(number.name == REDIS_UP.name and number.value for number in figures.snapshot().numbers)
            return Verdict(is_up, {} if is_up else {"reason": "Redis is away, or can't do what it is asked"})

        stop = threading.Event()
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda _signum, _frame: stop.set())
        with MetricsServer(address, registry, health=lambda: Verdict(is_well=True), ready=ready) as server:
            tell(f"Metrics are served at http://{server.address}/metrics")
            while not stop.wait(POLL_S):  # the handler of a signal that comes just before a wait runs after it
                pass
