"""`mlxq worker`: serves queues with one model until it is stopped.

Translates options into a `WorkerConfig` and errors into sentences; everything else is `BatchWorker`.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import click

from mlxq.errors import ConfigError, MlxqError


@click.command()
@click.option("--model", envvar="MLXQ_MODEL", help="Directory or Hub repository of the model, or demo.")
@click.option(
    "--queue", "queues", envvar="MLXQ_QUEUE", multiple=True, help="RQ queue to serve; may be repeated.  [default: mlxq]"
)
@click.option("--url", help="Redis URL.  [env var: MLXQ_URL, REDIS_URL; default: redis://localhost:6379/0]")
@click.option("--burst", is_flag=True, default=None, envvar="MLXQ_BURST", help="End once the queues are empty.")
@click.option(
    "--max-num-seqs", type=click.IntRange(1), envvar="MLXQ_MAX_NUM_SEQS", help="Rows decoded at once.  [default: 32]"
)
@click.option(
    "--default-max-tokens",
    type=click.IntRange(1),
    envvar="MLXQ_DEFAULT_MAX_TOKENS",
    help="Limit for requests that set none.  [default: 2048]",
)
@click.option(
    "--extra-eos-token",
    "extra_eos_tokens",
    multiple=True,
    envvar="MLXQ_EXTRA_EOS_TOKEN",
    metavar="TOKEN",
    help="A further end token, as its id or its text; may be repeated.",
)
@click.option(
    "--allow-no-eos",
    is_flag=True,
    default=None,
    envvar="MLXQ_ALLOW_NO_EOS",
    help="Accept a model that names no end token at all.",
)
@click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(0),
    envvar="MLXQ_GRACE_S",
    metavar="SECONDS",
    help="How long running rows may go on after SIGTERM or SIGINT.  [default: 30]",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    envvar="MLXQ_LOG_LEVEL",
    show_default=True,
)
@click.option("--parent-pid", type=int, hidden=True, help="End when this process is gone.")
def worker(log_level: str, queues: tuple[str, ...], extra_eos_tokens: tuple[str, ...], **given: Any) -> None:
    """Claim jobs from Redis and decode them in one batch.

    Ends on SIGTERM or SIGINT: running rows get their grace, everything else goes back to the queue. A second signal
    gives everything back at once.
    """
    from mlxq.connect import connect, queue_errors
    from mlxq_worker.config import WorkerConfig
    from mlxq_worker.worker import BatchWorker

    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")  # to stderr, unlike RQ's own
    try:
        config = WorkerConfig.from_env(
            os.environ, queues=queues or None, extra_eos_tokens=extra_eos_tokens or None, **given
        )
        connection = connect(config.url)
        with queue_errors(connection):
            batch_worker = BatchWorker(list(config.queues), connection=connection, serializer="json", config=config)
            batch_worker.work(logging_level=log_level.upper())
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    except MlxqError as error:
        raise click.ClickException(str(error)) from error
