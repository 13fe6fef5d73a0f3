"""`mlxq enqueue`: requests from a file, or one from the command line, into the queue."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import click

from mlxq import keys
from mlxq.cli import options
from mlxq.cli.options.reading import Reading, reading
from mlxq.cli.patience import ANSWER_S, Patience
from mlxq.cli.report import EMPTY_HINT, counted, print_dropped, print_failures
from mlxq.cli.terminal import show, tell
from mlxq.errors import QueueUnavailable
from mlxq.files.failures import Failures
from mlxq.files.input import BadLine
from mlxq.files.read_ahead import ReadAhead
from mlxq.queue.batch import POLL_S
from mlxq.queue.client import Batch, Client
from mlxq.queue.connect import DEFAULT_URL, refuse_cluster
from mlxq.requests.openai import ParsedLine
from mlxq.results.answer import Answer
from mlxq.results.read_back import calls_of, choices_of, text_of

MAX_NAMED = 5
"""Refused lines that are named one by one; the others are counted."""


@click.command(context_settings=options.SETTINGS)
@reading(required=False)
@click.option("--prompt", help="One prompt, instead of a file.")
@click.option("--wait", is_flag=True, help="With --prompt: wait for the answer and print it.")
@click.option("--batch-id", help="Complete this batch instead of making a new one.")
@options.url
@options.queue
def enqueue(
    reading: Reading,
    prompt: str | None,
    wait: bool,
    batch_id: str | None,
    url: str | None,
    queue: str,
) -> None:
    """Put requests in the queue and print the batch id.

    Enqueuing the same file again under the same --batch-id adds only what is missing; requests that have changed since
    are left out and counted. Lines that can't be used are named on stderr and left out; `mlxq collect` never sees them.
    If anything was left out, the exit code is 1. A Redis that goes away meanwhile, or is full, is waited for.

    Example: mlxq enqueue -i in.jsonl --batch-id tonight
    """
    _check_usage(reading, prompt, wait)
    client = Client(url or DEFAULT_URL, queue)
    batch = client.open(batch_id)
    refuse_cluster(client.redis)
    if prompt is not None:
        line = reading.prompt(prompt, custom_id="prompt")
        patience = Patience() if wait else Patience(ANSWER_S)
        patience(lambda: _submit_prompt(batch, line))
        if wait:
            _print_answer(client, batch, patience)
        else:
            show(batch.id)
    else:
        _enqueue_file(batch, _GoodLines(reading.requests()))


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
                self._name(line)

    def _name(self, line: BadLine) -> None:
        self.num_bad += 1
        if self.num_bad <= MAX_NAMED:
            tell(f"{line.place}: {line.error.message}")
        else:
            self.unnamed.add(line.error.code, line.error.message, line.place)


def _enqueue_file(batch: Batch, lines: _GoodLines) -> None:
    num_new, num_changed = 0, 0
    patience = Patience()
    try:
        while not lines.have_ended:
            chunk = list(lines.next_chunk())
            changed = set(patience(partial(batch.changed, chunk)))
            num_changed += len(changed)
            chunk = [line for line in chunk if line.request.custom_id not in changed]
            num_new += patience(partial(batch.add, chunk))
        patience(batch.seal)
    except QueueUnavailable as error:
        raise type(error)(f"{error}; to complete the batch, add --batch-id {batch.id}") from error
    except KeyboardInterrupt:
        tell(f"Interrupted; to complete the batch, add --batch-id {batch.id}")
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
