"""`mlxq delete`: takes a batch and its answers out of Redis."""

from __future__ import annotations

import click

from mlxq.cli import options
from mlxq.cli.terminal import tell
from mlxq.queue.client import Client
from mlxq.queue.connect import DEFAULT_URL


@click.command(context_settings=options.SETTINGS)
@click.argument("batch_id", metavar="BATCH")
@options.url
def delete(batch_id: str, url: str | None) -> None:
    """Delete BATCH with all its answers from Redis: collect them first.

    A batch whose requests wait or run is left as it is: cancel it first. What is not deleted goes by itself, answers
    after 7 days and failures after 30.

    Example: mlxq delete tonight
    """
    with Client(url or DEFAULT_URL) as client:
        client.batch(batch_id).delete()
    tell(f"batch {batch_id} is deleted")
