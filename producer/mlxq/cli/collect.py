"""`mlxq collect`: a batch's answers into a file, now or until the batch is done."""

from __future__ import annotations

from pathlib import Path

import click

from mlxq.cli import options
from mlxq.cli.options.writing import Writing
from mlxq.cli.options.writing import fields as fields_option
from mlxq.cli.patience import Patience
from mlxq.cli.progress import progress
from mlxq.cli.report import finish
from mlxq.cli.signals import StopRequest
from mlxq.cli.terminal import tell
from mlxq.files.collection import collect as collect_answers
from mlxq.files.tally import Tally


@click.command(context_settings=options.SETTINGS)
@click.argument("batch_id", metavar="BATCH")
@options.output(required=True)
@options.error_file
@click.option("--follow", is_flag=True, help="Wait for the rest of the batch.")
@options.ordered
@fields_option
@options.url
def collect(
    batch_id: str,
    output: Path,
    error_file: Path | None,
    follow: bool,
    ordered: bool,
    fields: str | None,
    url: str | None,
) -> None:
    """Write the answers of BATCH to a file; run it again for those that ended since.

    A Redis that goes away meanwhile is waited for, and so is one that is busy or loading.

    Example: mlxq collect tonight -o out.jsonl --follow
    """
    writing = Writing.of(output, error_file, fields)
    patience = Patience()
    client = options.open_client(url)
    batch = patience(lambda: client.batch(batch_id))
    counts = patience(batch.counts)
    with StopRequest() as stop, progress(counts.total if counts.sealed else None) as display:

        def on_turn(tally: Tally) -> bool:
            display.update(tally)
            return not stop

        summary = collect_answers(
            batch,
            writing.answers,
            writing.errors,
            on_turn=on_turn,
            follow=follow,
            ordered=ordered,
            tell=tell,
            table=writing.table,
        )
    if summary.interrupted:
        tell("The batch is not done; run the same command again for the rest.")
    finish(summary, writing.errors, stop, with_rate=False)  # ours is how fast files are written
