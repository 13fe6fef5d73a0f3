"""`-i -` with a pipe that stays open: what has come is sent on, and Ctrl-C is heard."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from tests.support.fake_worker import FakeWorker
from tests.support.processes import MLXQ, environment
from tests.support.waiting import DEADLINE_S, wait_until

from mlxq.queue.client import Client

pytestmark = pytest.mark.slow


@contextmanager
def fed(*command: str, url: str) -> Iterator[subprocess.Popen[str]]:
    """The command while it runs, with pipes to all its ends; killed in the end."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*MLXQ, *command], env=environment(MLXQ_URL=url), stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def send(process: subprocess.Popen[str], custom_id: str) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps({"custom_id": custom_id, "prompt": "hello"}) + "\n")
    process.stdin.flush()


def has_waiting(client: Client, count: int) -> bool:
    return client.queue_length() == count


def has_lines(path: Path, count: int) -> bool:
    return path.exists() and path.read_text().count("\n") == count


def run_command(tmp_path: Path) -> list[str]:
    return ["run", "-i", "-", "-o", str(tmp_path / "out.jsonl"), "--workers", "0"]


@pytest.mark.parametrize("name", ["run", "enqueue"])
def test_each_line_is_queued_before_the_next_one_comes(redis_url: str, tmp_path: Path, name: str) -> None:
    client = Client(redis_url)
    command = run_command(tmp_path) if name == "run" else ["enqueue", "-i", "-"]
    with fed(*command, url=redis_url) as process:
        send(process, "a")
        wait_until(partial(has_waiting, client, 1), "the first line")
        for number, custom_id in enumerate("bcd", start=2):
            send(process, custom_id)
            wait_until(partial(has_waiting, client, number), f"line {number}")


def test_a_run_answers_line_by_line_and_ends_with_its_input(redis_url: str, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with FakeWorker(redis_url), fed(*run_command(tmp_path), url=redis_url) as process:
        for number, custom_id in enumerate("abc", start=1):
            send(process, custom_id)
            wait_until(partial(has_lines, output, number), f"answer {number}")
        process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0


def test_ctrl_c_ends_a_run_that_waits_for_input_and_keeps_what_it_has(redis_url: str, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with FakeWorker(redis_url), fed(*run_command(tmp_path), url=redis_url) as process:
        send(process, "a")
        wait_until(partial(has_lines, output, 1), "the answer")
        process.send_signal(signal.SIGINT)
        process.wait(DEADLINE_S)  # its input never ends
        assert process.stderr is not None
        said = process.stderr.read()
    assert (process.returncode, "Interrupted" in said, "Fatal" in said) == (-signal.SIGINT, True, False), said
    assert json.loads(output.read_text())["custom_id"] == "a"
