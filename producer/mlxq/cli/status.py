"""`mlxq status`: the batches, or one of them, and the queue they are in."""

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
from mlxq.queue.client import Batch, BatchCounts, Client
from mlxq.queue.connect import DEFAULT_URL

MAX_LISTED = 20


@click.command(context_settings=options.SETTINGS)
@click.argument("batch_id", metavar="[BATCH]", required=False)
@click.option("--json", "as_json", envvar="MLXQ_JSON", is_flag=True, help="Print one JSON object.")
@options.url
@options.queue
def status(batch_id: str | None, as_json: bool, url: str | None, queue: str) -> None:
    """Show the batches, the newest first, or one BATCH, and the queue.

    A Redis that is full, busy or loading is waited for, up to a minute.
    """
    client = Client(url or DEFAULT_URL, queue)
    patience = Patience(ANSWER_S)
    if batch_id is None:
        patience(lambda: _report_all(client, as_json))
    else:
        patience(lambda: _report_one(client.batch(batch_id), client, as_json))


def _report_all(client: Client, as_json: bool) -> None:
    batches = [client.batch(batch_id).counts() for batch_id in reversed(client.batch_ids())]
    queue = _queue(client)
    if as_json:
        _print_json({"queue": queue, "batches": [_as_object(counts) for counts in batches]})
    else:
        _print_batches(batches)
        _print_queue(queue)


def _report_one(batch: Batch, client: Client, as_json: bool) -> None:
    counts, rate = batch.counts(), batch.rate()
    queue = _queue(Client(client.redis, batch.queue))
    if as_json:
        _print_json({"queue": queue, "batch": {**_as_object(counts), "requests_per_s": rate}})
    else:
        _print_batch(counts, rate)
        _print_queue(queue)


def _queue(client: Client) -> dict[str, Any]:
    return {"name": client.queue, "waiting": client.queue_length(), "workers": client.num_workers()}


def _as_object(counts: BatchCounts) -> dict[str, Any]:
    return {**asdict(counts), "state": _state(counts)}


def _print_json(report: dict[str, Any]) -> None:
    click.echo(json.dumps(report))


def _state(counts: BatchCounts) -> str:
    if counts.cancelled:
        return "cancelled"
    if not counts.sealed:
        return "open"
    return "done" if counts.is_done else "running"


def _print_queue(queue: dict[str, Any]) -> None:
    click.echo(f"queue {queue['name']}: {queue['waiting']:,} waiting, {counted(queue['workers'], 'worker')}")


def _print_batches(batches: list[BatchCounts]) -> None:
    batch = Column("batch", no_wrap=True)  # an id that is cut short can't be copied
    table = Table(batch, "queue", "state", "ended", "total", "failed", "cancelled", "age")
    for counts in batches[:MAX_LISTED]:
        age = duration(time.time() - counts.created)
        numbers = (counts.num_ended, counts.total, counts.num_failed, counts.num_cancelled)
        table.add_row(counts.batch_id, counts.queue, _state(counts), *(f"{number:,}" for number in numbers), age)
    if batches:
        Console().print(table)
    if len(batches) > MAX_LISTED:
        click.echo(f"... and {len(batches) - MAX_LISTED} older ones")


def _print_batch(counts: BatchCounts, rate: float) -> None:
    click.echo(f"batch {counts.batch_id}: {_state(counts)}, {counts.num_ended:,} of {counts.total:,} ended")
    click.echo(
        f"{counts.num_finished:,} answered, {counts.num_failed:,} failed, {counts.num_cancelled:,} cancelled; "
        f"{rate:.1f} requests/s"
    )
    click.echo(f"{counts.prompt_tokens:,} prompt and {counts.completion_tokens:,} completion tokens")
    if counts.stops:
        table = Table("stopped by", "token id", "choices")
        for stop in counts.stops:
            table.add_row(stop.type, "" if stop.token_id is None else str(stop.token_id), f"{stop.count:,}")
        Console().print(table)
