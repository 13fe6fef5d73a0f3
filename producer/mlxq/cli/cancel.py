"""`mlxq cancel`: ends what waits, and has workers drop what runs."""

from __future__ import annotations

from contextlib import suppress

import click

from mlxq.cli import options
from mlxq.cli.patience import ANSWER_S, Patience
from mlxq.cli.report import counted
from mlxq.cli.terminal import tell
from mlxq.errors import BatchNotFound


@click.command(context_settings=options.SETTINGS)
@click.argument("target", metavar="BATCH|JOB")
@options.url
def cancel(target: str, url: str | None) -> None:
    """Cancel a batch or a single job. Partial answers of running requests are kept.

    A Redis that is busy or loading is waited for, up to a minute; one that is full is no hindrance.

    Example: mlxq cancel tonight
    """
    client = options.open_client(url)
    patience = Patience(ANSWER_S)
    with suppress(BatchNotFound):
        batch = patience(lambda: client.batch(target))
        if patience(batch.counts).is_done:
            tell(f"batch {target} was done already, and stays so")
            return
        num_ended = patience(batch.cancel)
        tell(f"batch {target} is cancelled: {counted(num_ended, 'waiting request')} ended")
        return
    try:
        was_running = patience(lambda: client.batch_of(target).cancel_job(target))
    except BatchNotFound:
        raise BatchNotFound(f"there is no batch or job {target!r} in this Redis") from None
    if not was_running:
        raise click.ClickException(f"job {target} has already ended")
    tell(f"job {target} is cancelled")
