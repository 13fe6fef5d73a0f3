"""`mlxq status`: the batches, or one of them, and the queues they are in."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
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
from mlxq.queue.client import Batch, BatchCounts, Client
from mlxq.queue.connect import DEFAULT_URL
from mlxq.queue.overview import Overview, QueueState, overview, queue_state

MAX_LISTED = 20


@click.command(context_settings=options.SETTINGS)
@click.argument("batch_id", metavar="[BATCH]", required=False)
@click.option("--json", "as_json", envvar="MLXQ_JSON", is_flag=True, help="Print one JSON object.")
@options.url
@options.queue
def status(batch_id: str | None, as_json: bool, url: str | None, queue: str) -> None:
    """Show the batches, the newest first, or one BATCH, and the queues with their workers.

    A Redis that is full, busy or loading is waited for, up to a minute.

    Example: mlxq status tonight --json
    """
    client = Client(url or DEFAULT_URL, queue)
    patience = Patience(ANSWER_S)
    if batch_id is None:
        patience(lambda: _report_all(client, as_json))
    else:
        patience(lambda: _report_one(client.batch(batch_id), client, as_json))


def _report_all(client: Client, as_json: bool) -> None:
    found = overview(client.redis, client.queue)
    if as_json:
        batches = [{**_as_object(counts), "num_missing": found.num_missing(counts)} for counts in found.batches]
        broken = [asdict(batch) for batch in found.broken]
        queues = [asdict(queue) for queue in found.queues]
        queue = _queue(found.queue(client.queue))
        _print_json({"queue": queue, "queues": queues, "batches": batches, "broken": broken, "error": found.error})
    else:
        _print_batches(found)
        for state in found.queues:
            _print_queue(state)


def _report_one(batch: Batch, client: Client, as_json: bool) -> None:
    counts, rate = batch.counts(), batch.rate()
    state = queue_state(client.redis, batch.queue)
    if as_json:
        one = {**_as_object(counts), "requests_per_s": rate}
        _print_json({"queue": _queue(state), "queues": [asdict(state)], "batch": one})
    else:
        _print_batch(counts, rate)
        _print_queue(state)


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
    table = Table(batch, "queue", "state", "ended", "total", "failed", "cancelled", "age")
    for counts in found.batches[:MAX_LISTED]:
        age = duration(time.time() - counts.created)
        numbers = (counts.num_ended, counts.total, counts.num_failed, counts.num_cancelled)
        table.add_row(
            cell(counts.batch_id), cell(counts.queue), counts.state, *(f"{number:,}" for number in numbers), age
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


def _print_batch(counts: BatchCounts, rate: float) -> None:
    say(f"batch {counts.batch_id}: {counts.state}, {counts.num_ended:,} of {counts.total:,} ended")
    say(
        f"{counts.num_finished:,} answered, {counts.num_failed:,} failed, {counts.num_cancelled:,} cancelled; "
        f"{rate:.1f} requests/s"
    )
    say(f"{counts.prompt_tokens:,} prompt and {counts.completion_tokens:,} completion tokens")
    if counts.stops:
        table = Table("stopped by", "token id", "choices")
        for stop in counts.stops:
            table.add_row(cell(stop.type), "" if stop.token_id is None else str(stop.token_id), f"{stop.count:,}")
        Console().print(table)
