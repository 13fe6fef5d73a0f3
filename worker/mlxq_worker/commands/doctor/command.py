"""The command: what to look at, in which order, and how it is shown."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import click

from mlxq import keys
from mlxq.cli import options
from mlxq.cli.terminal import cell, say, show
from mlxq.deploying.roles import COMMANDS, Role
from mlxq.errors import ConfigError, MlxqError
from mlxq.queue.connect import DEFAULT_URL, connect
from mlxq_worker.commands import tuning
from mlxq_worker.commands.doctor import machine, model_folder, packages, queues, redis_server, rights
from mlxq_worker.commands.doctor.finding import Finding, problem
from mlxq_worker.host.slow_states import narrow_batch

TIMEOUT_S = 5.0


@click.command(context_settings=options.SETTINGS)
@click.option("--model", envvar="MLXQ_MODEL", help="Look at this model, too: a directory, a Hub repository, or demo.")
@click.option(
    "--queue", "queue_names", multiple=True, envvar="MLXQ_QUEUE", help="Queue; may be repeated.  [default: mlxq]"
)
@options.url
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Where answers will be written.",
)
@click.option(
    "--role",
    type=click.Choice(list(COMMANDS)),
    help="Try the rights of this role only.  [default: those of producer and worker]",
)
@click.option("--no-redis", is_flag=True, help="Leave Redis and the queues out.")
@click.option("--no-generation", is_flag=True, help="Don't load the model and let it generate.")
@click.option("--json", "as_json", envvar="MLXQ_JSON", is_flag=True, help="Print one JSON object.")
def doctor(
    model: str | None,
    queue_names: tuple[str, ...],
    url: str | None,
    output_dir: Path,
    role: Role | None,
    no_redis: bool,
    no_generation: bool,
    as_json: bool,
) -> None:
    """Look at everything that an installation hangs on, and say what is wrong and what to do.

    Changes nothing that is there; in Redis it writes to keys of its own, to try its rights, and deletes them. Exit code
    1 says that there is a problem, 0 that there is none, warnings or not.

    Example: mlxq doctor --model mlx-community/Qwen3-4B-4bit
    """
    found: list[Finding] = []
    for finding in _look(model, queue_names or (keys.DEFAULT_QUEUE,), url, output_dir, role, no_redis, no_generation):
        found.append(finding)
        if not as_json:
            _print(finding)
    counts = Counter(finding.level for finding in found)
    if as_json:
        show(json.dumps({"ok": not counts["problem"], "findings": [asdict(finding) for finding in found]}))
    else:
        say(f"{counts['problem']} problems, {counts['warning']} warnings, {counts['note']} notes")
    sys.exit(1 if counts["problem"] else 0)


def _look(
    model: str | None,
    queue_names: Iterable[str],
    url: str | None,
    output_dir: Path,
    role: Role | None,
    no_redis: bool,
    no_generation: bool,
) -> Iterator[Finding]:
    yield from packages.look_at_python()
    installed = list(packages.look_at_packages(packages.wanted()))
    yield from installed
    yield from machine.look_at_disk(output_dir)
    if not no_redis:
        yield from look_at_queues(url, queue_names, role)
    if packages.installed_version("mlx") is None or packages.installed_version("mlx-lm") is None:
        return  # said above
    yield from look_at_worker(model, no_generation=no_generation)


def look_at_queues(url: str | None, queue_names: Iterable[str], role: Role | None = None) -> Iterator[Finding]:
    """Redis, the rights in it, and the queues."""
    try:
        connection = connect(url or DEFAULT_URL, timeout_s=TIMEOUT_S)
    except ConfigError as error:
        yield problem("redis", str(error), "correct --url or MLXQ_URL")
        return
    with connection:
        server = list(redis_server.look_at_redis(connection))
        yield from server
        if any(finding.level == "problem" and finding.name in ("redis", "redis_login") for finding in server):
            return
        yield from rights.look_at_rights(connection, role)
        for name in queue_names:
            yield from queues.look_at_queue(connection, name)


def look_at_worker(model: str | None, *, no_generation: bool) -> Iterator[Finding]:
    """The device, and the model on it."""
    from mlxq_worker.backend import fit_of, load_backend, machine_of
    from mlxq_worker.commands.inspect import model_as_object
    from mlxq_worker.config import WorkerConfig
    from mlxq_worker.model.load import load_tokenizer_only
    from mlxq_worker.model.locate import DEMO

    try:
        config = WorkerConfig.from_env(os.environ, model=model or DEMO)
    except ConfigError as error:
        yield problem("configuration", str(error), "correct that variable: workers would refuse it")
        return
    folder: Path | None = None
    refused: MlxqError | None = None
    if model is not None:
        try:
            folder = load_tokenizer_only(model, allow_no_eos=True).path
        except MlxqError as error:
            refused = error
            folder = Path(model) if Path(model).is_dir() else None
    try:
        here = machine_of(folder, config)
    except MlxqError:
        here = machine_of(None, config)  # what is wrong with its files is said below
    yield from machine.look_at_device(here.setting, here.machine_bytes)
    if model is None:
        yield from machine.no_model()
        return
    if folder is None:
        yield problem("model", str(refused), "name a directory, a Hub repository that can be reached, or demo")
        return
    files = list(model_folder.look_at_files(folder))
    yield from files
    description = list(
        model_folder.look_at_description(
            lambda: model_as_object(load_tokenizer_only(model), tool_call_parser=None, reasoning_parser=None)
        )
    )
    yield from description
    if any(finding.level == "problem" for finding in (*files, *description)):
        return
    try:
        fit = fit_of(config)
    except MlxqError as error:
        yield problem("model", str(error), "see the findings on the model")
        return
    yield from machine.look_at_fit(
        str(fit), fit.weights_bytes, fit.limit_bytes, has_metal=here.setting.recommended_bytes is not None
    )
    yield from machine.look_at_width(
        tuning.width_of(config, fit.reason), narrow_batch(fit.num_longest, fit.wanted, fit.longest_tokens)
    )
    if not no_generation:
        yield from model_folder.look_at_generation(lambda: load_backend(config))


def _print(finding: Finding) -> None:
    from rich.console import Console

    styles = {"ok": "green", "note": "blue", "warning": "yellow", "problem": "red"}
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{finding.level:>8}", style=styles[finding.level], end="  ")
    console.print(cell(f"{finding.name}: {' '.join(finding.what.split())}"))
    if finding.todo:
        console.print(cell(f"{'':10}-> {' '.join(finding.todo.split())}"))
