"""`mlxq worker --models FILE`: puts together the processes, the policy and the port of a worker with several models."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import click
from redis import Redis

from mlxq import keys
from mlxq.errors import QueueUnavailable
from mlxq.metrics.address import Address
from mlxq.queue import durability
from mlxq.queue.connect import connect
from mlxq.queue.overview import QueueState, queue_states
from mlxq.queue.routing import announce
from mlxq_worker.commands.models_file import ModelEntry, check_folders, read_models_file
from mlxq_worker.commands.worker_options import WORKER, WORKER_OPTIONS
from mlxq_worker.config import WorkerConfig, variable_of
from mlxq_worker.supervision.dead_workers import DeadWorkers
from mlxq_worker.supervision.models_supervisor import ModelsSupervisor, ServedModel
from mlxq_worker.supervision.supervisor import logger
from mlxq_worker.supervision.totals import Totals
from mlxq_worker.supervision.worker_process import WorkerGaveUp, WorkerProcess
from mlxq_worker.timing import Every

ANNOUNCE_S = 30.0
ONE_MODELS_OWN = ("model", "queues", "adapter_path", "served_model_name")
"""Options that make no sense beside a file of models."""


def supervise_models(path: Path, given: Mapping[str, Any], options: Sequence[str]) -> None:
    """Be the process that looks after several models until it is stopped.

    Args:
        given: the fields of `WorkerConfig` that options have set, for all models.
        options: the same as words of a command line.

    Raises:
        ConfigError: the file or an option can't be used.
    """
    for name in ONE_MODELS_OWN:
        if given.get(name):
            raise click.UsageError(f"{WORKER_OPTIONS[name].flag} is for one model: with --models the file says it")
    file = read_models_file(path)
    check_folders(file)
    # The first model's stands for what all have in common: where Redis is, how long rows may go on after a signal.
    shared = WorkerConfig.from_env(_for_all(os.environ), **{**given, **file.entries[0].given})
    with ExitStack() as stack:
        connection = stack.enter_context(connect(shared.url))
        with suppress(QueueUnavailable):  # it is waited for, or given up, and that is said
            for finding in durability.warnings(connection):
                logger.warning("%s", finding)
        queues = [keys.model_queue(entry.name) for entry in file.entries]
        dead_workers = DeadWorkers(connection, queues)
        models = [_served(entry, options, shared, file.policy.drain_s, dead_workers, stack) for entry in file.entries]
        look = _Look(connection, [entry.name for entry in file.entries])
        supervisor = ModelsSupervisor(models, file.policy, look, dead_workers, shared.grace_s, burst=shared.burst)
        if shared.metrics_address is not None:
            _serve_metrics(shared.metrics_address, shared.url, models, queues, supervisor, stack)
        logger.info("Serving %s, one at a time", ", ".join(entry.name for entry in file.entries))
        try:
            supervisor.run()
        except WorkerGaveUp as error:
            sys.exit(error.exit_code)  # it has said why, where we would


class _Look:
    """How the queues stand; now and then it announces the models, so that requests for them can be routed."""

    def __init__(self, connection: Redis, names: Sequence[str]) -> None:
        self._redis = connection
        self._names = list(names)
        self._announce_timer = Every(ANNOUNCE_S)

    def __call__(self) -> Sequence[QueueState]:
        """
        Raises:
            QueueUnavailable: Redis can't be asked.
        """
        states, now = queue_states(self._redis, [keys.model_queue(name) for name in self._names])
        if self._announce_timer.is_due(now):
            announce(self._redis, self._names, now)
        return states


def _for_all(env: Mapping[str, str]) -> dict[str, str]:
    """The environment without what is one model's own: the file says that."""
    own = {variable_of(name) for name in ONE_MODELS_OWN}
    return {name: value for name, value in env.items() if name not in own}


def _served(
    entry: ModelEntry,
    options: Sequence[str],
    shared: WorkerConfig,
    drain_s: float,
    dead_workers: DeadWorkers,
    stack: ExitStack,
) -> ServedModel:
    """A model with its process, which isn't started yet. What the file says of it comes after the options for all."""
    totals = Totals() if shared.metrics_address is not None else None
    if totals is not None:
        totals.rests()  # until it is loaded
    command = [*WORKER, *options, "--queue", keys.model_queue(entry.name), *entry.words(), "--grace", f"{drain_s:g}"]
    variables = {"MLXQ_URL": shared.url, "MLXQ_BURST": "0", "MLXQ_MODELS": ""}
    variables |= {variable_of(name): "" for name in (*ONE_MODELS_OWN, "metrics_address")}
    process = stack.enter_context(
        WorkerProcess(command, variables, verbose=True, tell=logger.warning, on_end=dead_workers.release, totals=totals)
    )
    return ServedModel(entry.name, process, totals)


def _serve_metrics(
    address: Address,
    url: str,
    models: Sequence[ServedModel],
    queues: Sequence[str],
    supervisor: ModelsSupervisor,
    stack: ExitStack,
) -> None:
    from mlxq.metrics.queue_figures import SCRAPE_TIMEOUT_S, QueueFigures
    from mlxq_worker.supervision.metrics_port import open_models_port

    connection = stack.enter_context(connect(url, timeout_s=SCRAPE_TIMEOUT_S))
    totals = {model.name: model.totals for model in models if model.totals is not None}
    port = open_models_port(address, totals, QueueFigures(connection, queues), queues, supervisor.why_not_ready)
    stack.enter_context(port)
    logger.info("Metrics are served at http://%s/metrics", port.address)
