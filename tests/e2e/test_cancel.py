"""Rows that are dropped in the middle keep their text and say why: a cancelled batch, and requests that time out."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from redis import Redis
from tests.support.batch_files import (
    Line,
    choice,
    demo_examples,
    endless,
    read_lines,
    request,
    requests,
    text_of,
    write_lines,
)
from tests.support.processes import MLXQ, run, running
from tests.support.waiting import wait_until

from mlxq.queue.client import Client
from mlxq_worker.demo.tasks import count_example

NUM_ROWS = 16
MAX_TOKENS = 1000
"""About as many as the model's context holds: no row gets there before it is dropped."""
TIMEOUT_S = 2.0
"""Of the many seconds that the rows would take; on a very slow machine no token comes before."""


def worker(url: str) -> AbstractContextManager[subprocess.Popen[str]]:
    """A worker that looks for cancellations twice a second, as its leases are short."""
    command = (*MLXQ, "worker", "--model", "demo", "--url", url, "--max-num-seqs", str(NUM_ROWS))
    return running(*command, MLXQ_LEASE_S="2")


@contextmanager
def frozen(connection: Redis) -> Iterator[None]:
    """Meanwhile no row of the one worker gets any further, to its limit for example."""
    [key] = connection.smembers("rq:workers")
    pid = int(connection.hget(key, "pid"))
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def enqueue(url: str, directory: Path, lines: list[Line]) -> str:
    """The id of a new batch of these requests."""
    source = write_lines(directory / "in.jsonl", lines)
    return run(*MLXQ, "enqueue", "-i", str(source), "--url", url).stdout.strip()


def collect(url: str, batch_id: str, output: Path) -> int:
    """Waits for all answers of the batch; returns the exit code."""
    return run(*MLXQ, "collect", batch_id, "-o", str(output), "--follow", "--url", url).returncode


def ask(url: str, prompt: str) -> str:
    """One answer from a worker that is there."""
    return run(*MLXQ, "enqueue", "--prompt", prompt, "--wait", "--set", "temperature=0", "--url", url).stdout


def is_cut_short(line: Line, reason: str) -> bool:
    """Whether the answer was dropped for this reason in its count from 1 on."""
    found, num_tokens = choice(line), line["response"]["body"]["usage"]["completion_tokens"]
    last = num_tokens - 1 if num_tokens else None
    stop = {"type": reason, "token_id": None, "token": None, "string": None, "token_index": last}
    ended_so = (found["finish_reason"], found["stop_reason"], found["stop_details"]) == ("length", "abort", stop)
    return ended_so and num_tokens < MAX_TOKENS and text_of(line)[:2] == " 1"[: len(text_of(line))]


@pytest.mark.slow
def test_cancelling_a_batch_ends_what_waits_and_keeps_the_text_of_what_runs(
    connection: Redis, redis_url: str, tmp_path: Path
) -> None:
    custom_ids = [f"endless-{index}" for index in range(3 * NUM_ROWS)]
    # Between them are those that were claimed ahead. The short one's is the last place in the batch: when it has ended
    # those before it have begun.
    decoding, queued = custom_ids[: NUM_ROWS - 1], custom_ids[-NUM_ROWS:]
    lines = [endless(custom_id, max_tokens=MAX_TOKENS) for custom_id in custom_ids]
    lines.insert(len(decoding), request("short", count_example(1, 10)))
    batch_id = enqueue(redis_url, tmp_path, lines)
    batch = Client(connection).batch(batch_id)

    with worker(redis_url):
        wait_until(lambda: batch.counts().num_finished == 1, "the short answer")
        with frozen(connection):
            cancelled = run(*MLXQ, "cancel", batch_id, "--url", redis_url)
        exit_code = collect(redis_url, batch_id, tmp_path / "out.jsonl")
        text_after = ask(redis_url, "Count from 3 to 7:")

    answers, errors = read_lines(tmp_path / "out.jsonl"), read_lines(tmp_path / "out.errors.jsonl")
    assert (cancelled.returncode, exit_code) == (0, 1)
    assert choice(answers.pop("short"))["stop_details"]["type"] == "eos_token"
    assert sorted([*answers, *errors]) == sorted(custom_ids)
    assert answers.keys() >= set(decoding)
    assert all(is_cut_short(answers[custom_id], "cancelled") and text_of(answers[custom_id]) for custom_id in decoding)
    assert errors.keys() >= set(queued)
    assert {(line["response"], line["error"]["code"]) for line in errors.values()} == {(None, "batch_cancelled")}
    assert batch.counts().num_cancelled == len(custom_ids)
    assert text_after == " 3 4 5 6 7\n"


@pytest.mark.slow
def test_a_request_that_times_out_keeps_its_text_and_its_neighbours_go_on(redis_url: str, tmp_path: Path) -> None:
    late = [f"late-{index}" for index in range(NUM_ROWS - 4)]
    neighbours = demo_examples(4)
    lines = [endless(custom_id, max_tokens=MAX_TOKENS, timeout=TIMEOUT_S) for custom_id in late]

    with worker(redis_url):
        ask(redis_url, "Count from 3 to 7:")  # the first steps of all are slow
        batch_id = enqueue(redis_url, tmp_path, [*lines, *requests(neighbours)])
        exit_code = collect(redis_url, batch_id, tmp_path / "out.jsonl")

    answers = read_lines(tmp_path / "out.jsonl")
    assert exit_code == 1, "answers that were cut off are no success"
    assert answers.keys() == {*late, *neighbours}
    for custom_id in late:
        run_info = answers[custom_id]["response"]["body"]["mlxq"]
        assert is_cut_short(answers[custom_id], "deadline")
        has_begun = text_of(answers[custom_id]) != ""
        assert run_info["prefill_s"] + run_info["decode_s"] >= 0.99 * TIMEOUT_S * has_begun
    for custom_id, example in neighbours.items():
        assert text_of(answers[custom_id]) == example.expected_text
