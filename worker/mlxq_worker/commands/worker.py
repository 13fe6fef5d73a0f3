"""`mlxq worker`: serves queues with one model until it is stopped.

Translates options into a `WorkerConfig` and errors into sentences and exit codes. Called by a user it is the process
that looks after the one that works, and `Supervisor` does everything else; called by such a process (`parent_pid`) it
is that one, a `BatchWorker`.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from mlxq.cli.lazy import missing_package
from mlxq.errors import ConfigError, LoginRefused, MlxqError, QueueUnavailable
from mlxq.logs import LogFormat, log_to_stderr
from mlxq.passing import is_denial
from mlxq.printable import log_printably, printable_lines
from mlxq_worker import exits
from mlxq_worker.commands.worker_options import WORKER, all_worker_options, no_kv_bits, words_of
from mlxq_worker.config import KV_BITS, WorkerConfig
from mlxq_worker.startup import collecting_later

if TYPE_CHECKING:
    from mlxq_worker.supervision.totals import Totals


@click.command()
@all_worker_options
@click.option("--url", help="Redis URL.  [env var: MLXQ_URL, REDIS_URL; default: redis://localhost:6379/0]")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    envvar="MLXQ_LOG_LEVEL",
    show_default=True,
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    envvar="MLXQ_LOG_FORMAT",
    show_default=True,
    help="Lines for people, or a JSON object a line.",
)
@click.option(KV_BITS[0], hidden=True, expose_value=False, callback=no_kv_bits)
@click.pass_context
def worker(
    ctx: click.Context,
    /,
    log_level: str,
    log_format: LogFormat,
    queues: tuple[str, ...],
    extra_eos_tokens: tuple[str, ...],
    **given: Any,
) -> None:
    """Claim jobs from Redis and decode them in one batch.

    Ends on SIGTERM or SIGINT: running rows get their grace, everything else goes back to the queue. A second signal
    gives everything back at once. The model runs in a process of its own, which is started again when it dies.

    Example: mlxq worker --model mlx-community/Qwen3-4B-4bit
    """
    log_to_stderr(log_format, worker=os.environ.get("MLXQ_NAME"))  # unlike RQ's own
    log_printably("mlxq.supervisor", "rq.worker")
    try:
        config = WorkerConfig.from_env(
            os.environ, queues=queues or None, extra_eos_tokens=extra_eos_tokens or None, **given
        )
        if config.parent_pid is None:
            _supervise(config, options_given(ctx), log_level)
        else:
            _end(_work(config, log_level, log_format))
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def _supervise(config: WorkerConfig, options: list[str], log_level: str) -> None:
    """Be the process that looks after the one that works. That one reads the same environment and options; the URL,
    which may hold a password and would show in `ps`, only from the former."""
    from mlxq.queue import durability
    from mlxq.queue.connect import connect
    from mlxq_worker.supervision.dead_workers import DeadWorkers
    from mlxq_worker.supervision.supervisor import Supervisor, logger
    from mlxq_worker.supervision.worker_process import WorkerGaveUp, WorkerProcess

    logger.setLevel(log_level.upper())
    connection = connect(config.url)
    with suppress(QueueUnavailable):  # the worker itself says so
        for finding in durability.warnings(connection):
            logger.warning("%s", finding)
    dead_workers = DeadWorkers(connection, config.queues)
    command = [*WORKER, *options]
    try:
        with ExitStack() as stack:
            totals = _served_totals(config, stack)
            process = WorkerProcess(
                command,
                {"MLXQ_URL": config.url},
                verbose=True,
                tell=logger.warning,
                on_end=dead_workers.release,
                totals=totals,
            )
            Supervisor(stack.enter_context(process), dead_workers, config.grace_s, totals).run()
    except WorkerGaveUp as error:
        sys.exit(error.exit_code)  # it has said why, where we would
    finally:
        connection.close()


def _served_totals(config: WorkerConfig, stack: ExitStack) -> Totals | None:
    """What the worker's figures will add up to, served until the stack unwinds; `None` if nobody asked for that.

    Raises:
        ConfigError: nobody can listen there.
    """
    if config.metrics_address is None:
        return None
    from mlxq.metrics.queue_figures import SCRAPE_TIMEOUT_S, QueueFigures
    from mlxq.queue.connect import connect
    from mlxq_worker.supervision.metrics_port import open_port
    from mlxq_worker.supervision.supervisor import logger
    from mlxq_worker.supervision.totals import Totals

    totals = Totals()
    connection = stack.enter_context(connect(config.url, timeout_s=SCRAPE_TIMEOUT_S))
    queue_figures = QueueFigures(connection, config.queues)
    port = open_port(config.metrics_address, totals, queue_figures, model=config.model, queues=config.queues)
    stack.enter_context(port)
    logger.info("Metrics are served at http://%s/metrics", port.address)
    return totals


def _work(config: WorkerConfig, log_level: str, log_format: LogFormat) -> int:
    """Be the process that works; returns its exit code (`exits`)."""
    from mlxq.queue.connect import connect, queue_errors

    connection = connect(config.url)
    try:
        with collecting_later():
            from mlxq_worker.worker import BatchWorker

        with queue_errors(connection):
            batch_worker = BatchWorker(
                list(config.queues), name=config.name, connection=connection, serializer="json", config=config
            )
            batch_worker.work(logging_level=log_level.upper())
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        if (missing := missing_package(error)) is None:
            raise
        _say(missing, log_format)
        return exits.GAVE_UP
    except MlxqError as error:
        _say(click.ClickException(printable_lines(error)), log_format)
        return _exit_code(error)
    return batch_worker.exit_code


def _say(error: click.ClickException, log_format: LogFormat) -> None:
    """Why this process can't work, as click says it, or as the last line of its log."""
    if log_format == "json":
        logging.getLogger("rq.worker").error("%s", error.message)
    else:
        error.show()


def _exit_code(error: MlxqError) -> int:
    if isinstance(error, LoginRefused) or (error.__cause__ is not None and is_denial(error.__cause__)):
        return exits.NO_LOGIN
    return exits.NO_REDIS if isinstance(error, QueueUnavailable) else exits.GAVE_UP


def _end(code: int) -> NoReturn:
    """End this process at once: nothing is open any more, and taking down an interpreter with MLX and a model in it
    takes the better part of a second, which a stop doesn't have to wait for."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def options_given(ctx: click.Context) -> list[str]:
    """The options on the command line, but for the URL, as they were given."""
    words: list[str] = []
    for option in ctx.command.params:
        name = option.name or ""
        if name != "url" and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            words += words_of(option.opts[0], ctx.params[name])
    return words
