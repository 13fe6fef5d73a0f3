"""`mlxq enqueue`: requests from a file, or one from the command line, into the queue."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import click
from click.core import ParameterSource

from mlxq import keys
from mlxq.cli import options
from mlxq.cli.options.reading import Reading, reading
from mlxq.cli.patience import ANSWER_S, Patience
from mlxq.cli.report import EMPTY_HINT, counted, print_dropped, print_failures
from mlxq.cli.terminal import show, tell
from mlxq.errors import QueueUnavailable, RequestError
from mlxq.files.failures import Failures
from mlxq.files.input import BadLine
from mlxq.files.read_ahead import ReadAhead
from mlxq.printable import printable
from mlxq.queue.batch import POLL_S
from mlxq.queue.client import Batch, Client
from mlxq.queue.connect import DEFAULT_URL, refuse_cluster
from mlxq.queue.routing import known_models, model_of
from mlxq.requests.openai import ParsedLine
from mlxq.results.answer import Answer
from mlxq.results.read_back import calls_of, choices_of, text_of

MAX_NAMED = 5
"""Refused lines that are named one by one; the others are counted."""
ANNOUNCED_S, LOOK_S = 60.0, 0.2
"""How long models are waited for where none is known, and how often they are looked for, in seconds."""


@click.command(context_settings=options.SETTINGS)
@reading(required=False)
@click.option("--prompt", help="One prompt, instead of a file.")
@click.option("--wait", is_flag=True, help="With --prompt: wait for the answer and print it.")
@click.option("--batch-id", help="Complete this batch instead of making a new one.")
@click.option("--batch-name", help="What to call a new batch in `mlxq status`.")
@click.option("--metadata", multiple=True, metavar="NAME=TEXT", help="Your own notes on a new batch; may be repeated.")
@click.option(
    "--max-inflight",
    type=click.IntRange(1),
    help="Wait while the batch has so many requests without an answer, or that a `collect --follow --delete` has yet to"
    " take out of Redis; or 256 MiB of them.",
)
@click.option("--route", is_flag=True, help="Send each request to the queue of the model that its `model` field names.")
@options.url
@options.queue
@click.pass_context
def enqueue(
    ctx: click.Context,
    /,
    reading: Reading,
    prompt: str | None,
    wait: bool,
    batch_id: str | None,
    batch_name: str | None,
    metadata: tuple[str, ...],
    max_inflight: int | None,
    route: bool,
    url: str | None,
    queue: str,
) -> None:
    """Put requests in the queue and print the batch id.

    Enqueuing the same file again under the same --batch-id adds only what is missing; requests that have changed since
    are left out and counted. Lines that can't be used are named on stderr and left out; `mlxq collect` never sees them.
    If anything was left out, the exit code is 1. A Redis that goes away meanwhile, or is full, is waited for.

    With --route there is one batch for each model, and an id for each is printed: a worker with --models serves them.

    Example: mlxq enqueue -i in.jsonl --batch-id tonight
    """
    _check_usage(reading, prompt, wait)
    if route and ctx.get_parameter_source("queue") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--route takes the queue from each request's model: leave --queue out")
    client = Client(url or DEFAULT_URL, queue)
    about = _Labels(batch_name, dict(map(_note, metadata)))
    batch = client.open(batch_id, name=about.name, metadata=about.metadata)
    refuse_cluster(client.redis)
    models = _known_models(client) if route else ()
    if prompt is not None:
        line = reading.prompt(prompt, custom_id="prompt")
        batch = _batch_for(client, batch.id, model_of(line, models), about) if route else batch
        patience = Patience() if wait else Patience(ANSWER_S)
        patience(lambda: _submit_prompt(batch, line))
        if wait:
            _print_answer(client, batch, patience)
        else:
            show(batch.id)
    else:
        routes = _Routes(client, batch, models, about) if route else _Straight(batch)
        _enqueue_file(routes, _GoodLines(reading.requests()), max_inflight)


def _note(pair: str) -> tuple[str, str]:
    name, equals, text = pair.partition("=")
    if not (name and equals):
        raise click.UsageError(f"--metadata {pair!r} is not NAME=TEXT, such as owner=Kim")
    return name, text


def _known_models(client: Client) -> tuple[str, ...]:
    """The models that are served; whoever serves them may just be starting."""
    patience, deadline, has_told = Patience(ANSWER_S), time.monotonic() + ANNOUNCED_S, False
    models: tuple[str, ...] = ()
    while not (models := patience(lambda: known_models(client.redis))) and time.monotonic() < deadline:
        if not has_told:
            tell("no worker has announced models yet; waiting for one")
            has_told = True
        time.sleep(LOOK_S)
    if not models:
        raise click.ClickException(
            "no worker has announced models in this Redis yet: start one with `mlxq worker --models FILE`"
        )
    return models


def _check_usage(reading: Reading, prompt: str | None, wait: bool) -> None:
    if bool(reading.paths) == (prompt is not None):
        raise click.UsageError("give either --input or --prompt")
    if reading.columns.keep:
        raise click.UsageError("--keep goes with mlxq run, which writes the output, too")
    if wait and prompt is None:
        raise click.UsageError("--wait goes with --prompt; for a file, use `mlxq collect --follow`")


def _submit_prompt(batch: Batch, line: ParsedLine) -> None:
    if batch.changed([line]):
        raise click.ClickException(f"batch {batch.id} has another prompt; use another --batch-id")
    batch.add([line])
    batch.seal()


class _GoodLines:
    """The usable lines as they arrive; the first of the others are named on stderr, and all are counted."""

    def __init__(self, lines: Iterator[ParsedLine | BadLine]) -> None:
        self._source = ReadAhead(lines, ahead=keys.CHUNK)
        self.num_read = 0
        self.num_bad = 0
        self.unnamed = Failures()
        self.dropped = Counter[str]()

    @property
    def have_ended(self) -> bool:
        return self._source.has_ended

    def next_chunk(self) -> Iterator[ParsedLine]:
        """Those of the next chunk, or of what is there when the rest of it takes long."""
        for line in self._source.read(keys.CHUNK):
            self.num_read += 1
            if isinstance(line, ParsedLine):
                self.dropped.update(line.dropped)
                yield line
            else:
                self.refuse(line.place, line.error)

    def refuse(self, place: str, error: RequestError) -> None:
        self.num_bad += 1
        if self.num_bad <= MAX_NAMED:
            tell(f"{place}: {error.message}")
        else:
            self.unnamed.add(error.code, error.message, place)


@dataclass(frozen=True, slots=True)
class _Labels:
    """What a user says of a new batch."""

    name: str | None
    metadata: Mapping[str, str]


class _Straight:
    """All requests into one batch."""

    def __init__(self, batch: Batch) -> None:
        self.batches = [batch]
        self.completing = f"--batch-id {batch.id}"

    def sorted(self, lines: _GoodLines) -> Iterator[tuple[Batch, list[ParsedLine]]]:
        """The next chunk of them, by where they go."""
        yield self.batches[0], list(lines.next_chunk())


class _Routes:
    """Each request into the batch of its model; those of other models are refused.

    Args:
        batch: whose id all of theirs begin with.
        models: those that are served.
        about: what is said of each new batch.
    """

    def __init__(self, client: Client, batch: Batch, models: Collection[str], about: _Labels) -> None:
        self._client = client
        self._about = about
        self._stem = batch.id
        self._models = models
        self._by_model: dict[str, Batch] = {}
        self.completing = f"--route --batch-id {batch.id}"

    @property
    def batches(self) -> list[Batch]:
        return list(self._by_model.values())

    def sorted(self, lines: _GoodLines) -> Iterator[tuple[Batch, list[ParsedLine]]]:
        """The next chunk of them, by where they go."""
        chunks: dict[str, list[ParsedLine]] = {}
        for line in lines.next_chunk():
            try:
                chunks.setdefault(model_of(line, self._models), []).append(line)
            except RequestError as error:
                lines.refuse(f"request {printable(line.request.custom_id)}", error)
        for model, chunk in chunks.items():
            if model not in self._by_model:
                self._by_model[model] = _batch_for(self._client, self._stem, model, self._about)
            yield self._by_model[model], chunk


def _batch_for(client: Client, stem: str, model: str, about: _Labels) -> Batch:
    """The batch of one model's requests, in that one's queue. Its id tells the model as far as an id can."""
    slug = re.sub(r"[^A-Za-z0-9_-]", "-", model)
    if slug != model:  # another name may look like this one now
        slug = f"{slug}-{hashlib.sha256(model.encode()).hexdigest()[:6]}"
    return client.in_queue(keys.model_queue(model)).open(f"{stem}-{slug}", name=about.name, metadata=about.metadata)


def _enqueue_file(routes: _Straight | _Routes, lines: _GoodLines, max_inflight: int | None) -> None:
    num_new, num_changed = 0, 0
    patience = Patience()
    try:
        while not lines.have_ended:
            for batch, asked in routes.sorted(lines):
                changed = set(patience(partial(batch.changed, asked)))
                num_changed += len(changed)
                chunk = [line for line in asked if line.request.custom_id not in changed]
                num_new += patience(partial(batch.add, chunk, max_inflight=max_inflight))
        for batch in routes.batches:
            patience(batch.seal)
    except QueueUnavailable as error:
        raise type(error)(f"{error}; to complete the batch, add {routes.completing}") from error
    except KeyboardInterrupt:
        tell(f"Interrupted; to complete the batch, add {routes.completing}")
        raise
    if unnamed := lines.unnamed.most_common():
        tell(f"and {counted(lines.num_bad - MAX_NAMED, 'line')} more:")
        print_failures(unnamed)
    tell(f"{counted(num_new, 'request')} enqueued, {counted(lines.num_bad, 'line')} refused")
    print_dropped(lines.dropped.most_common())
    if num_changed:
        there = f"The batch has {counted(num_changed, 'request')} with other content"
        tell(f"{there}, which stay as they are; use another --batch-id.")
    if not lines.num_read:
        tell(EMPTY_HINT)
    for batch in routes.batches:
        show(batch.id)
    if lines.num_bad or num_changed:
        raise SystemExit(1)


def _print_answer(client: Client, batch: Batch, patience: Patience) -> None:
    if patience(client.num_workers) == 0:
        tell(f"no worker serves queue {batch.queue} yet; waiting for one")
    answers: list[Answer] = []
    collector = batch.collector()
    while not patience(collector.is_done):
        patience(lambda: answers.extend(collector.next_answers(POLL_S)))
    for answer in answers:
        if answer.error is not None:
            raise click.ClickException(answer.error.message)
        _print_choices(choices_of(answer.line))
        if not answer.is_complete:
            raise click.ClickException("the answer is not whole: it was cut off")


def _print_choices(choices: Sequence[Mapping[str, Any]]) -> None:
    """Text and calls, each call as a line of JSON; with several answers, stderr numbers them."""
    for number, choice in enumerate(choices, start=1):
        if len(choices) > 1:
            tell(f"answer {number} of {len(choices)}:")
        if (text := text_of(choice)) is not None:
            show(text)
        for call in calls_of(choice):
            show(json.dumps(call, ensure_ascii=False))
