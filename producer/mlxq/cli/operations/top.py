"""`mlxq top`: queues, workers, batches and stops of a Redis, live in a terminal.

A look at Redis is a value (`Overview`), and what is drawn follows from it and from the looks before (`render`). Changes
nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from mlxq.cli import options
from mlxq.cli.patience import ANSWER_S, Patience
from mlxq.cli.progress import duration
from mlxq.cli.signals import StopRequest
from mlxq.cli.terminal import cell
from mlxq.metrics.pace import Pace
from mlxq.queue.client import BatchCounts, Client
from mlxq.queue.connect import DEFAULT_URL
from mlxq.queue.overview import Overview, QueueState, WorkerState, overview

MAX_BATCHES = 12
MAX_STOPS = 8
BAR = 30
UNKNOWN = "-"
NAME_CHARS = 12
"""Of a worker's name, which is a long number."""


class Paces:
    """How fast batches and workers are, from one look to the next."""

    def __init__(self) -> None:
        self._of_batches: dict[str, Pace] = {}
        self._of_workers: dict[str, Pace] = {}

    def update(self, found: Overview, now: float) -> None:
        """Take another look in. `now` is in seconds, monotonic."""
        ended = {counts.batch_id: counts.num_ended for counts in found.batches}
        tokens = {worker.name: worker.num_tokens for worker in _workers(found) if worker.num_tokens is not None}
        self._of_batches = _updated(self._of_batches, ended, now)
        self._of_workers = _updated(self._of_workers, tokens, now)

    def of_batch(self, batch_id: str) -> Pace:
        """Requests that have ended."""
        return self._of_batches.get(batch_id) or Pace()

    def of_worker(self, name: str) -> Pace:
        """Tokens of answers that have ended."""
        return self._of_workers.get(name) or Pace()


def _updated(paces: dict[str, Pace], counts: dict[str, int], now: float) -> dict[str, Pace]:
    """Those that are still there, and new ones."""
    kept = {name: paces.get(name) or Pace() for name in counts}
    for name, pace in kept.items():
        pace.update(counts[name], now)
    return kept


def render(found: Overview, paces: Paces) -> RenderableType:
    """All of it, as tables."""
    unfinished = [counts for counts in found.batches if counts.state in ("open", "running")]
    parts: list[RenderableType] = [_queues(found.queues), _worker_table(found, paces)]
    parts.append(_batches(unfinished, paces))
    parts.append(_stops(unfinished or found.batches[:1]))
    return Group(*parts)


def _queues(queues: Iterable[QueueState]) -> Table:
    table = _table("queue", "waiting", "oldest", "running", "failed", "workers")
    for state in queues:
        oldest = UNKNOWN if state.oldest_waiting_s is None else duration(state.oldest_waiting_s)
        counts = (_number(state.waiting), oldest, _number(state.running), _number(state.failed))
        table.add_row(cell(state.name), *counts, str(len(state.workers)))
    return table


def _worker_table(found: Overview, paces: Paces) -> Table:
    table = _table("worker", "host", "model", "width", "state", "tokens/s", "queues")
    for worker in _workers(found):
        queues = ", ".join(state.name for state in found.queues if worker in state.workers)
        rate = paces.of_worker(worker.name).per_s()
        table.add_row(
            cell(worker.name[:NAME_CHARS]),
            cell(worker.hostname),
            cell(worker.model or UNKNOWN),
            _number(worker.width),
            cell(worker.state),
            UNKNOWN if rate is None else f"{rate:,.0f}",
            cell(queues),
        )
    return table


def _batches(batches: Sequence[BatchCounts], paces: Paces) -> Table:
    table = _table("batch", "queue", "ended", "total", "failed", "requests/s", "left")
    for counts in batches[:MAX_BATCHES]:
        pace = paces.of_batch(counts.batch_id)
        rate, left_s = pace.per_s(), pace.left_s(counts.total - counts.num_ended)
        table.add_row(
            cell(counts.batch_id),
            cell(counts.queue),
            *(f"{number:,}" for number in (counts.num_ended, counts.total, counts.num_failed)),
            UNKNOWN if rate is None else f"{rate:,.1f}",
            UNKNOWN if left_s is None else duration(left_s),
        )
    if len(batches) > MAX_BATCHES:
        table.add_row(f"and {len(batches) - MAX_BATCHES} more")
    return table


def _stops(batches: Iterable[BatchCounts]) -> Table:
    """What stopped the answers of these batches, the most frequent first."""
    counts = Counter[tuple[str, int | None]]()
    for batch in batches:
        for stop in batch.stops:
            counts[stop.type, stop.token_id] += stop.count
    table = _table("stopped by", "token id", "answers", "")
    for (kind, token_id), count in counts.most_common(MAX_STOPS):
        bar = "█" * max(1, round(BAR * count / counts.most_common(1)[0][1]))
        table.add_row(cell(kind), "" if token_id is None else str(token_id), f"{count:,}", bar)
    return table


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False, title_justify="left", header_style="bold")


def _workers(found: Overview) -> list[WorkerState]:
    """Each once, whatever queues it serves."""
    return list({worker.name: worker for state in found.queues for worker in state.workers}.values())


def _number(count: int | None) -> str:
    return UNKNOWN if count is None else f"{count:,}"


@click.command(context_settings=options.SETTINGS)
@click.option("--interval", type=click.FloatRange(0.1), default=2.0, help="Seconds between two looks.")
@click.option("--once", is_flag=True, help="Take two looks, print what they show, and end.")
@options.url
@options.queue
def top(interval: float, once: bool, url: str | None, queue: str) -> None:
    """Watch queues, workers, batches and stops, until Ctrl-C.

    Workers show the tokens of answers that have ended; rates are over the last half minute. A Redis that is full, busy
    or loading is waited for, up to a minute.

    Example: mlxq top --url redis://queue.local:6379/0
    """
    client = Client(url or DEFAULT_URL, queue)
    paces, patience, console = Paces(), Patience(ANSWER_S), Console()

    def look() -> RenderableType:
        found: Overview = patience(lambda: overview(client.redis, client.queue))
        paces.update(found, time.monotonic())
        return render(found, paces)

    if once:
        look()
        time.sleep(interval)
        console.print(look())
        return
    with StopRequest() as stop, Live(look(), console=console, auto_refresh=False, screen=console.is_terminal) as live:
        while not stop:
            time.sleep(interval)
            live.update(look(), refresh=True)
