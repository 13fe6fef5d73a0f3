"""`mlxq status`: the batches, or one of them, and the queues they are in."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import click
from rich.console import Console
from rich.table import Column, Table

from mlxq.cli import options
from mlxq.cli.patience import ANSWER_S, Patience
from mlxq.cli.progress import duration
from mlxq.cli.report import counted
from mlxq.cli.terminal import cell, say
from mlxq.printable import printable
from mlxq.queue.client import BatchCounts, Client
from mlxq.queue.connect import DEFAULT_URL
from mlxq.queue.overview import Overview, QueueState, overview, queue_state

MAX_LISTED = 20
WATCH_EVERY_S = 2.0


@click.command(context_settings=options.SETTINGS)
@click.argument("batch_id", metavar="[BATCH]", required=False)
@click.option("--json", "as_json", envvar="MLXQ_JSON", is_flag=True, help="Print one JSON object.")
@click.option("--watch", is_flag=True, help="Show it again every two seconds, until BATCH is done.")
@options.url
@options.queue
def status(batch_id: str | None, as_json: bool, watch: bool, url: str | None, queue: str) -> None:
    """Show the batches, the newest first, or one BATCH, and the queues with their workers.

    With --watch and --json each look is a line. A Redis that is full, busy or loading is waited for, up to a minute.

    Example: mlxq status tonight --json
    """
    client = Client(url or DEFAULT_URL, queue)
    report = partial(_report_all, client) if batch_id is None else partial(_report_one, client, batch_id)
    while Patience(ANSWER_S)(partial(report, as_json, watch)) and watch:
        time.sleep(WATCH_EVERY_S)


def _clear(watch: bool) -> None:
    """Begin a picture that takes the place of the last one, on a terminal; elsewhere they follow one another."""
    if watch:
        Console().clear()


def _report_all(client: Client, as_json: bool, watch: bool) -> bool:
    """Returns whether there may be more to say later: that is never known."""
    found = overview(client.redis, client.queue)
    if as_json:
        batches = [{**_as_object(counts), "num_missing": found.num_missing(counts)} for counts in found.batches]
        broken = [asdict(batch) for batch in found.broken]
        queues = [asdict(queue) for queue in found.queues]
        queue = _queue(found.queue(client.queue))
        _print_json({"queue": queue, "queues": queues, "batches": batches, "broken": broken, "error": found.error})
    else:
        _clear(watch)
        _print_batches(found)
        for state in found.queues:
            _print_queue(state)
    return True


def _report_one(client: Client, batch_id: str, as_json: bool, watch: bool) -> bool:
    """Returns whether there will be more to say later."""
    batch = client.batch(batch_id)
    counts = batch.counts()
    pace = _Pace.of(counts, batch.rate())
    state = queue_state(client.redis, batch.queue)
    if as_json:
        _print_json(
            {"queue": _queue(state), "queues": [asdict(state)], "batch": {**_as_object(counts), **asdict(pace)}}
        )
    else:
        _clear(watch)
        _print_batch(counts, pace)
        _print_queue(state)
    return not (counts.is_done or (counts.cancelled and counts.num_ended >= counts.total))


@dataclass(frozen=True, slots=True)
class _Pace:
    """How fast a batch goes: by the answers that came last, which are taken to be as long as all so far. `left_s` is
    `None` where nothing comes, or more is being enqueued."""

    requests_per_s: float
    tokens_per_s: float
    left_s: float | None

    @classmethod
    def of(cls, counts: BatchCounts, requests_per_s: float) -> _Pace:
        tokens_per_s = requests_per_s * counts.completion_tokens / max(1, counts.num_finished)
        num_left = counts.total - counts.num_ended
        knows_left = requests_per_s > 0 and counts.sealed and not counts.cancelled
        return cls(requests_per_s, tokens_per_s, num_left / requests_per_s if knows_left else None)


def _queue(state: QueueState) -> dict[str, Any]:
    return {"name": state.name, "waiting": state.waiting, "workers": len(state.workers)}


def _as_object(counts: BatchCounts) -> dict[str, Any]:
    return {**asdict(counts), "state": counts.state}


def _print_json(report: dict[str, Any]) -> None:
    say(json.dumps(report))


def _print_queue(state: QueueState) -> None:
    parts = [f"{_number(state.waiting)} waiting"]
    if state.oldest_waiting_s is not None:
        parts.append(f"the first for {duration(state.oldest_waiting_s)}")
    others = {"running": state.running, "failed": state.failed}
    parts += [f"{_number(count)} {what}" for what, count in others.items() if count != 0]
    parts.append(counted(len(state.workers), "worker"))
    say(f"queue {printable(state.name)}: {', '.join(parts)}")


def _number(count: int | None) -> str:
    """A question mark where it can't be told."""
    return "?" if count is None else f"{count:,}"


def _print_batches(found: Overview) -> None:
    batch = Column("batch", no_wrap=True)  # an id that is cut short can't be copied
    listed = found.batches[:MAX_LISTED]
    names = ["name"] if any(counts.name for counts in listed) else []
    table = Table(batch, *names, "queue", "state", "ended", "total", "failed", "cancelled", "age")
    for counts in listed:
        age = duration(time.time() - counts.created)
        numbers = (counts.num_ended, counts.total, counts.num_failed, counts.num_cancelled)
        table.add_row(
            cell(counts.batch_id),
            *(cell(counts.name or "") for _ in names),
            cell(counts.queue),
            counts.state,
            *(f"{number:,}" for number in numbers),
            age,
        )
    if found.batches:
        Console().print(table)
    if len(found.batches) > MAX_LISTED:
        say(f"... and {len(found.batches) - MAX_LISTED} older ones")
    for broken in found.broken[:MAX_LISTED]:
        say(f"batch {printable(broken.batch_id)} can't be read: {printable(broken.error)}")
    if len(found.broken) > MAX_LISTED:
        say(f"... and {len(found.broken) - MAX_LISTED} more can't be read")
    if found.error:
        say(found.error)
    if missing := [counts for counts in found.batches if found.num_missing(counts)]:
        batches = counted(len(missing), "batch", "batches")
        say(f"Jobs of {batches} were ended or deleted by others: `mlxq status BATCH` counts them")


def _print_batch(counts: BatchCounts, pace: _Pace) -> None:
    named = f" ({printable(counts.name)})" if counts.name else ""
    say(f"batch {counts.batch_id}{named}: {counts.state}, {counts.num_ended:,} of {counts.total:,} ended")
    for name, value in counts.metadata.items():
        say(f"{printable(name)}: {printable(value if isinstance(value, str) else json.dumps(value))}")
    left = "" if counts.is_done or pace.left_s is None else f", {duration(pace.left_s)} left"
    say(
        f"{counts.num_finished:,} answered, {counts.num_failed:,} failed, {counts.num_cancelled:,} cancelled; "
        f"{pace.requests_per_s:.1f} requests/s, {pace.tokens_per_s:,.0f} tokens/s{left}"
    )
    say(f"{counts.prompt_tokens:,} prompt and {counts.completion_tokens:,} completion tokens")
    if counts.stops:
        table = Table("stopped by", "token id", "choices")
        for stop in counts.stops:
            table.add_row(cell(stop.type), "" if stop.token_id is None else str(stop.token_id), f"{stop.count:,}")
        Console().print(table)
