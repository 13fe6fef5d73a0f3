"""`mlxq worker`: serves queues with one model until it is stopped.

Translates options into a `WorkerConfig` and errors into sentences and exit codes. Called by a user it is the process
that looks after the one that works, and `Supervisor` does everything else; called by such a process (`parent_pid`) it
is that one, a `BatchWorker`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Collection
from contextlib import ExitStack, suppress
from pathlib import Path
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
    from redis import Redis

    from mlxq_worker.supervision.totals import Totals
    from mlxq_worker.worker import BatchWorker


NOT_OF_EACH_MODEL = ("url", "models_file", "burst", "grace_s", "metrics_address")
"""With several models: options of the process that looks after them, and not of those that work."""


@click.command()
@all_worker_options
@click.option(
    "--models",
    "models_file",
    envvar="MLXQ_MODELS",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="TOML file of several models, each served from a queue of its own, one at a time.",
)
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
    models_file: Path | None,
    queues: tuple[str, ...],
    extra_eos_tokens: tuple[str, ...],
    **given: Any,
) -> None:
    """Claim jobs from Redis and decode them in one batch.

    Ends on SIGTERM or SIGINT: running rows get their grace, everything else goes back to the queue. A second signal
    gives everything back at once. The model runs in a process of its own, which is started again when it dies. With
    --models several take turns in that process.

    Example: mlxq worker --model mlx-community/Qwen3-4B-4bit
    """
    log_to_stderr(log_format, worker=os.environ.get("MLXQ_NAME"))  # unlike RQ's own
    log_printably("mlxq.supervisor", "rq.worker")
    given |= {"queues": queues or None, "extra_eos_tokens": extra_eos_tokens or None}
    try:
        if models_file is not None:
            _supervise_models(models_file, given, options_given(ctx, NOT_OF_EACH_MODEL), log_level)
            return
        config = WorkerConfig.from_env(os.environ, **given)
        if config.parent_pid is None:
            _supervise(config, options_given(ctx), log_level)
        else:
            width_given = given["max_num_seqs"] is not None
            _end(_work(config if width_given else _tuned(config, log_level), log_level, log_format))
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def _supervise_models(path: Path, given: dict[str, Any], options: list[str], log_level: str) -> None:
    from mlxq_worker.commands.several_models import supervise_models
    from mlxq_worker.supervision.supervisor import logger

    logger.setLevel(log_level.upper())
    supervise_models(path, given, options)


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


def _tuned(config: WorkerConfig, log_level: str) -> WorkerConfig:
    """With the width that `mlxq bench` has proposed, if it has; nobody has given one."""
    from mlxq_worker.commands import tuning

    proposal = tuning.tuning_of(config.model)
    if proposal is None:
        return config
    logger = logging.getLogger("rq.worker")
    logger.setLevel(log_level.upper())  # RQ itself does so later
    logger.info("No width was given: %s", proposal)
    return tuning.tuned(config, proposal)


def _work(config: WorkerConfig, log_level: str, log_format: LogFormat) -> int:
    """Be the process that works; returns its exit code (`exits`)."""
    from mlxq.queue.connect import connect, queue_errors

    connection = connect(config.url)
    batch_worker: BatchWorker | None = None
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
        said = f"{error}{_missing_rights(connection) if _is_denied(error) else ''}"
        _say(click.ClickException(printable_lines(said)), log_format)
        return _exit_code(error, has_worked=batch_worker is not None and batch_worker.has_had_jobs)
    return batch_worker.exit_code


def _say(error: click.ClickException, log_format: LogFormat) -> None:
    """Why this process can't work, as click says it, or as the last line of its log."""
    if log_format == "json":
        logging.getLogger("rq.worker").error("%s", error.message)
    else:
        error.show()


def _is_denied(error: MlxqError) -> bool:
    """Whether a right is missing."""
    return error.__cause__ is not None and is_denial(error.__cause__)


def _missing_rights(connection: Redis) -> str:
    """All that a worker's user lacks, and what to do about it, a line for each kind."""
    from mlxq_worker.commands.doctor.rights import look_at_rights

    lacks = [finding for finding in look_at_rights(connection, "worker") if finding.level == "problem"]
    return "".join(f"\n{finding.what}: {finding.todo}" for finding in lacks)


def _exit_code(error: MlxqError, *, has_worked: bool) -> int:
    if _is_denied(error) and not has_worked:
        return exits.NO_RIGHTS
    if isinstance(error, LoginRefused) or _is_denied(error):
        return exits.NO_LOGIN
    return exits.NO_REDIS if isinstance(error, QueueUnavailable) else exits.GAVE_UP


def _end(code: int) -> NoReturn:
    """End this process at once: nothing is open any more, and taking down an interpreter with MLX and a model in it
    takes the better part of a second, which a stop doesn't have to wait for."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def options_given(ctx: click.Context, but: Collection[str] = ("url",)) -> list[str]:
    """The options on the command line, but for the URL, as they were given."""
    words: list[str] = []
    for option in ctx.command.params:
        name = option.name or ""
        if name not in but and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            words += words_of(option.opts[0], ctx.params[name])
    return words
