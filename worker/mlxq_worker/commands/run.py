"""`mlxq run`: a file of requests in, a file of answers out, with nothing else to start.

Puts together what others do: a private Redis (unless one is given), worker processes, `mlxq.files.bulk` and a progress
display. Never imports mlx itself. A worker takes as long to start as all else together, so it is started first: what
needs Redis or the terminal is imported meanwhile.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxq import keys
from mlxq.cli import options
from mlxq.cli.options.reading import Reading, reading
from mlxq.cli.options.writing import Writing
from mlxq.cli.options.writing import fields as fields_option
from mlxq.cli.signals import StopRequest
from mlxq.cli.terminal import tell
from mlxq.errors import QueueNotReady, QueueUnavailable
from mlxq.files.known_lines import KnownLines
from mlxq.files.output.manifest import RunFacts, check_manifest, manifest_path, write_manifest
from mlxq.files.output.retry import Retry
from mlxq.files.output.same_model import Expected
from mlxq.files.tally import Summary, Tally
from mlxq_worker.commands.worker_options import worker_command, worker_option
from mlxq_worker.startup import collecting_later
from mlxq_worker.supervision.redis_server import private_redis
from mlxq_worker.supervision.totals import Totals
from mlxq_worker.supervision.worker_process import WorkerProcess

if TYPE_CHECKING:
    from mlxq.cli.progress import Display
    from mlxq.queue.client import Client
    from mlxq_worker.model.generation import GenerationConfig, OpenFields
    from mlxq_worker.supervision.dead_workers import DeadWorkers

LEASE_S = 30
"""Shorter than a worker's own default: a run that is killed leaves its jobs behind for this long."""
RESUME_HINT = "Run the same command again to go on from here."


@click.command(context_settings=options.SETTINGS)
@reading(required=True)
@options.output(required=False)
@options.error_file
@fields_option
@worker_option("model", default="demo")
@click.option("--url", envvar=options.URL_VARIABLES, help="Use this Redis instead of a private one.")
@options.queue
@click.option(
    "--max-inflight", type=click.IntRange(1), default=keys.DEFAULT_MAX_INFLIGHT, help="Requests queued at a time."
)
@worker_option("max_num_seqs")
@worker_option("default_max_tokens")
@worker_option("generation_config")
@worker_option("memory_limit_bytes")
@worker_option("wired_limit")
@click.option("--workers", type=click.IntRange(0), default=1, help="Worker processes; 0 leaves the work to others.")
@click.option("--resume/--no-resume", default=True, help="Skip requests whose answer is in the output already.")
@click.option(
    "--retry-finish-reason",
    "retry_reasons",
    envvar="MLXQ_RETRY_FINISH_REASON",
    multiple=True,
    type=click.Choice(["length", "repetition", "stop", "tool_calls"]),
    help="Ask again for whole answers that are there and ended so; may be repeated.",
)
@click.option(
    "--max-tokens-on-retry",
    metavar="FACTORx[:MAX]",
    help="Ask again for answers that hit their limit, with one so many times as large: 2x, or 2x:4096.",
)
@click.option(
    "--continue-length", is_flag=True, help="Go on from the text of answers that are there and hit their limit."
)
@click.option(
    "--accept-model-change", is_flag=True, help="Go on from answers of another model, or with other end tokens."
)
@options.ordered
@worker_option("extra_eos_tokens")
@worker_option("allow_no_eos")
@worker_option("tool_call_parser")
@worker_option("reasoning_parser")
@click.option(
    "--manifest/--no-manifest", default=True, help="In the end, write down what came of it: OUT.manifest.json."
)
@click.option("--validate-only", is_flag=True, help="List the lines that can't be used, and run nothing.")
@click.option("-v", "--verbose", is_flag=True, help="Show what the worker writes.")
def run(
    reading: Reading,
    output: Path | None,
    error_file: Path | None,
    fields: str | None,
    url: str | None,
    queue: str,
    max_inflight: int,
    workers: int,
    resume: bool,
    retry_reasons: tuple[str, ...],
    max_tokens_on_retry: str | None,
    continue_length: bool,
    accept_model_change: bool,
    ordered: bool,
    manifest: bool,
    validate_only: bool,
    verbose: bool,
    **worker_options: Any,
) -> None:
    """Answer every request of a file.

    Starts a Redis and a worker for itself, and ends them. The output file is the only state: run the same command
    again after an interruption, or over a longer input, and only what is missing is done. With --url, a Redis that
    goes away is waited for. Give each model its own --output and, on a shared Redis, its own --queue.

    Example: mlxq run -i in.jsonl -o out.jsonl --set temperature=0
    """
    if validate_only:
        from mlxq.cli.validate import validate

        validate(reading)
    if output is None:
        raise click.UsageError("Missing option '-o' / '--output'.")
    if not (workers or url):
        raise click.UsageError("--workers 0 leaves the work to the workers of a Redis that they know: give its --url")
    writing = Writing.of(
        output,
        error_file,
        fields,
        kept=reading.columns.keep,
        kept_types=reading.kept_types(),
        inputs=reading.paths,
    )
    manifest_file = manifest_path(output) if manifest and (output.is_file() or not output.exists()) else None
    if manifest_file is not None:
        check_manifest(manifest_file)
    retry = Retry.read(retry_reasons, max_tokens_on_retry, goes_on=continue_length)
    known, started = KnownLines(), time.time()
    lines = reading.unknown(known)
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        is_shared = bool(url)
        url = url or stack.enter_context(private_redis()).url
        in_redis = _InRedis(url, queue)
        stack.callback(in_redis.close)
        totals = [Totals() for _ in range(workers)]
        command = worker_command(queue, **worker_options)
        processes = [
            stack.enter_context(
                WorkerProcess(
                    command, _variables(url), verbose=verbose, tell=tell, on_end=in_redis.release, totals=figures
                )
            )
            for figures in totals
        ]
        expected: Expected | None = None
        if not accept_model_change:
            expected = _expected(stack, worker_options, writing.answers if resume else None) if workers else Expected()
        if not is_shared and not writing.answers.exists():  # else there may be nothing to answer, or no Redis
            for process in processes:
                process.check()

        with collecting_later():
            from mlxq.cli.progress import progress
            from mlxq.cli.report import EMPTY_HINT, finish
            from mlxq.files import bulk
            from mlxq.queue.connect import address_of

            client = in_redis.client
        filled = _open_fields(worker_options) if workers else None
        sampling_defaults = filled.sampling or {} if filled else None
        known.expect(sampling_defaults)
        if is_shared:  # maybe by a variable that was set for something else
            tell(f"Using queue {queue} in the Redis at {address_of(client.redis)}.")
        display = stack.enter_context(progress(reading.count()))
        turn = _Turn(client, processes, in_redis.dead_workers, display, stop)
        try:
            for finding in _findings(client) if is_shared else ():
                tell(f"Warning: {finding}")
            summary = bulk.process(
                client,
                lines,
                writing.answers,
                writing.errors,
                on_turn=turn,
                max_inflight=max_inflight,
                resume=resume,
                ordered=ordered,
                # A Redis of others comes back some day; one of our own has nothing to come back with.
                tell=tell if is_shared else None,
                source=reading.source,
                default_max_tokens=filled.max_tokens if filled else None,
                sampling_defaults=sampling_defaults,
                table=writing.table,
                retry=retry,
                known=known,
                expected=None if accept_model_change else expected,
            )
        except QueueUnavailable as error:
            whose = "" if is_shared else "The Redis that this run had started is gone. "
            raise type(error)(f"{str(error).rstrip('.')}. {whose}{RESUME_HINT}") from error
    if summary.interrupted:
        tell(f"Interrupted. {RESUME_HINT}")
        if writing.table:
            tell(f"The answers so far are in {writing.answers}; the table is made when all are there.")
    elif summary.total == 0:
        tell(EMPTY_HINT)
    if manifest_file is not None:
        facts = RunFacts(
            started=started,
            command=["mlxq", *sys.argv[1:]],
            files={
                "input": [str(path) for path in reading.paths],
                "output": str(output),
                "answers": str(writing.answers),
                "errors": str(writing.errors),
            },
            model=_name_of(worker_options["model"]) if workers else None,
            row_efficiency=_row_efficiency(totals),
        )
        write_manifest(manifest_file, summary, facts)
    if workers:
        _warn_of_other_models(summary, worker_options["model"])
    finish(summary, writing.errors, stop)


def _findings(client: Client) -> list[str]:
    """What there is to say of the Redis; nothing while it can't be asked: the run itself waits for it, and says so."""
    from mlxq.queue import durability

    try:
        return durability.warnings(client.redis)
    except QueueNotReady:
        return []


def _name_of(model: str) -> str:
    from mlxq_worker.model.locate import name_of

    return name_of(model)


def _row_efficiency(totals: Sequence[Totals]) -> float | None:
    """Of all workers together."""
    kept, computed = map(sum, zip(*(figures.rows() for figures in totals), strict=True)) if totals else (0, 0)
    return kept / computed if computed else None


def _open_fields(worker_options: Mapping[str, Any]) -> OpenFields | None:
    """What our workers fill in where a request says nothing; `None` if the model isn't here yet, so nobody knows.

    Raises:
        ModelError: the model's generation_config.json is broken.
    """
    from mlxq_worker.model.generation import OpenFields, read_generation_config
    from mlxq_worker.model.locate import folder_of

    folder = folder_of(worker_options["model"])
    mode: GenerationConfig = worker_options["generation_config"] or "auto"
    if folder is None and mode == "auto":
        return None
    stated = {} if folder is None else read_generation_config(folder)
    return OpenFields.of(stated, mode, worker_options["default_max_tokens"])


def _expected(stack: ExitStack, worker_options: Mapping[str, Any], answers: Path | None) -> Expected:
    """The model that our workers will have, to hold these answers against. A model that isn't here yet is not fetched
    for that: then the first of its answers tells."""
    model = worker_options["model"]
    if answers is None or not answers.is_file() or not answers.stat().st_size:
        return Expected(_name_of(model))
    from mlxq_worker.commands.eos import EosProcess
    from mlxq_worker.model.locate import folder_of

    if folder_of(model) is None:
        return Expected(_name_of(model))
    named = {"extra_eos_token": worker_options["extra_eos_tokens"], "allow_no_eos": worker_options["allow_no_eos"]}
    process = EosProcess(model, **named)
    stack.callback(process.close)
    return Expected(_name_of(model), process.sets)


def _warn_of_other_models(summary: Summary, model: str) -> None:
    for name, count in summary.models:
        if name != _name_of(model):
            tell(
                f"Warning: {count:,} of the answers are by {name}, not by {_name_of(model)}. Give each model an"
                " --output of its own and, on a shared Redis, a --queue of its own."
            )


class _InRedis:
    """What the run sees of its queue, from when it first asks."""

    def __init__(self, url: str, queue: str) -> None:
        self._url = url
        self._queue = queue

    @cached_property
    def client(self) -> Client:
        from mlxq.queue.client import Client

        return Client(self._url, self._queue)

    @cached_property
    def dead_workers(self) -> DeadWorkers:
        from mlxq_worker.supervision.dead_workers import DeadWorkers

        return DeadWorkers(self.client.redis, [self._queue])

    def release(self, worker_name: str, has_died: bool) -> None:
        """`DeadWorkers.release`."""
        self.dead_workers.release(worker_name, has_died)

    def close(self) -> None:
        if "client" in vars(self):
            self.client.close()


@dataclass(frozen=True, slots=True)
class _Turn:
    """What happens between two turns of the run: the workers are looked after and the progress is shown."""

    client: Client
    processes: Sequence[WorkerProcess]
    dead_workers: DeadWorkers
    display: Display
    stop: StopRequest

    def __call__(self, tally: Tally) -> bool:
        # With nothing to answer there is no model to load; and no worker can start while Redis is away.
        if tally.num_inflight and not tally.is_waiting:
            for process in self.processes:
                process.check()
            self.dead_workers.release_if_due(time.monotonic())
        self.display.update(tally, partial(self._note, tally))
        return not self.stop

    def _note(self, tally: Tally) -> str:
        if tally.is_waiting:
            return "waiting for Redis"
        try:
            if not tally.num_inflight or self.client.queue_length() < tally.num_inflight:
                return ""
            return "the model is loading" if self.client.num_workers() else "no worker yet"
        except QueueUnavailable:
            return ""  # the run itself is about to notice, and says so


def _variables(url: str) -> dict[str, str]:
    # Our worker waits for what we have yet to queue, whatever the user's own workers do.
    never_burst = {"MLXQ_BURST": "0"}
    return never_burst | {"MLXQ_URL": url, "MLXQ_LEASE_S": os.environ.get("MLXQ_LEASE_S", str(LEASE_S))}
