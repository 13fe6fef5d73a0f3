"""Commands as shells run them: in loops that Ctrl-C is to end, with streams that are closed, under supervisors."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.fake_worker import FakeWorker
from tests.support.processes import MLXQ, ended, environment, running
from tests.support.waiting import DEADLINE_S, wait_until

from mlxq.queue.client import Client

pytestmark = pytest.mark.slow

PROGRAM = shlex.join(MLXQ)


def sh(script: str, url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", script],
        env=environment(MLXQ_URL=url),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def write_input(path: Path, count: int) -> Path:
    path.write_text("".join(f'{{"custom_id": "r{i}", "prompt": "Say hello"}}\n' for i in range(count)))
    return path


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@contextmanager
def a_run(tmp_path: Path, url: str) -> Iterator[subprocess.Popen[str]]:
    """A run that nobody answers, in a loop of a shell that says which round it is."""
    file, out = write_input(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"
    command = f"{PROGRAM} run -i {file} -o {out} --workers 0"
    script = f"for round in 1 2 3; do echo round $round; {command}; echo exit code $?; done"
    with running("bash", "-c", script, MLXQ_URL=url) as process:
        wait_until(lambda: Client(url).queue_length() == 3, "the requests")
        yield process


def test_ctrl_c_ends_the_loop_of_the_shell_too(redis_url: str, tmp_path: Path) -> None:
    with a_run(tmp_path, redis_url) as process:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
        said = ended(process)
    assert "Interrupted. Run the same command again" in said
    assert "round 1" in said
    assert "round 2" not in said
    assert process.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
    assert Client(redis_url).queue_length() == 0, "what waited was cancelled"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["run", "collect"])
def test_an_interrupted_command_dies_by_the_signal_after_its_clean_up(
    redis_url: str, tmp_path: Path, command: str, number: signal.Signals
) -> None:
    out = tmp_path / "out.jsonl"
    if command == "run":
        arguments = ["run", "-i", str(write_input(tmp_path / "in.jsonl", 3)), "-o", str(out), "--workers", "0"]
    else:
        Client(redis_url).submit(["x", "y", "z"], "b1")
        arguments = ["collect", "b1", "-o", str(out), "--follow"]
    with running(*MLXQ, *arguments, MLXQ_URL=redis_url) as process:
        wait_until(lambda: out.exists() and Client(redis_url).queue_length() == 3, "the command to be at work")
        process.send_signal(number)
        said = ended(process)
    assert process.returncode == -number, said
    assert "0 answered, 0 failed" in said
    assert "Traceback" not in said


def test_an_interrupted_enqueue_says_how_to_go_on(redis_url: str) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*MLXQ, "enqueue", "-i", "-", "--batch-id", "b1"],
        env=environment(MLXQ_URL=redis_url),
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
    ) as process:
        assert process.stdin is not None
        process.stdin.write('{"prompt": "x"}\n')
        process.stdin.flush()
        wait_until(lambda: Client(redis_url).queue_length() == 1, "the first line")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == -signal.SIGINT, said
    assert "to complete the batch, add --batch-id b1" in said
    assert "Traceback" not in said


def test_a_run_that_failed_in_part_has_another_exit_code_and_the_loop_goes_on(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "x"}\n{oops\n')
    command = f"{PROGRAM} run -i {tmp_path}/in.jsonl -o {tmp_path}/out.jsonl --workers 0"
    with FakeWorker(redis_url):
        done = sh(f"for round in 1 2; do {command}; echo exit code $?; done", redis_url)
    assert done.stdout.splitlines() == ["exit code 1", "exit code 1"]


def test_a_closed_standard_error_costs_nothing_and_reaches_no_file(redis_url: str, tmp_path: Path) -> None:
    file, out = write_input(tmp_path / "in.jsonl", 20), tmp_path / "out.jsonl"
    with FakeWorker(redis_url):
        done = sh(f"{PROGRAM} run -i {file} -o {out} --workers 0 2>&-", redis_url)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(json.loads(line)["custom_id"] for line in lines_of(out)) == sorted(f"r{i}" for i in range(20))


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_worker_writes_to_no_file_whatever_is_closed(tmp_path: Path, closed: str) -> None:
    file, out = write_input(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl"
    done = sh(f"unset MLXQ_URL; {PROGRAM} run -i {file} -o {out} --set max_tokens=2 {closed}", "")
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(line)["custom_id"] for line in lines_of(out)) == ["r0", "r1"]


@pytest.mark.parametrize("command", ["run -i - -o OUT --workers 0", "enqueue -i -"])
def test_a_closed_standard_input_is_one_line_that_says_so(redis_url: str, tmp_path: Path, command: str) -> None:
    done = sh(f"{PROGRAM} {command.replace('OUT', str(tmp_path / 'out.jsonl'))} <&-", redis_url)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == ("Error: standard input is closed: give a file, or pipe the requests in")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("columns", ["40", "80"])
@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_what_a_run_says_is_whole_on_narrow_and_dumb_terminals(
    redis_url: str, tmp_path: Path, term: str, columns: str
) -> None:
    file, out = write_input(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl"
    with FakeWorker(redis_url):
        done = sh(f"TERM={term} COLUMNS={columns} {PROGRAM} run -i {file} -o {out} --workers 0", redis_url)
    assert done.returncode == 0
    assert "\x1b" not in done.stderr
    assert "2 answered, 0 failed" in done.stderr
    assert "eos_token" in done.stderr
    assert max(len(line) for line in done.stderr.splitlines() if "│" in line) <= int(columns)
