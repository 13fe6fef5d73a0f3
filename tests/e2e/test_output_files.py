"""Real runs and their output files: a full disk, a line that a crash cut off, a second run at the same time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.fake_worker import FakeWorker
from tests.support.processes import MLXQ, environment, run
from tests.support.waiting import DEADLINE_S, wait_until

from mlxq.queue.client import Client

pytestmark = pytest.mark.slow

NUM_REQUESTS = 60
WITH_SMALL_FILES = """
import resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from mlxq.cli import main
main()
"""
"""mlxq on a disk that is full as soon as a file is larger than so many bytes: the write fails after what fits."""


class Files:
    def __init__(self, directory: Path) -> None:
        self.input = directory / "in.jsonl"
        self.output = directory / "out.jsonl"
        self.errors = directory / "out.errors.jsonl"
        lines = (json.dumps({"custom_id": f"r{i}", "prompt": "hello"}) for i in range(NUM_REQUESTS))
        self.input.write_text("".join(f"{line}\n" for line in lines))

    @property
    def arguments(self) -> tuple[str, ...]:
        return ("run", "-i", str(self.input), "-o", str(self.output), "--workers", "0")

    def answered(self) -> list[str]:
        """The ids in the output file, every line of which must be whole."""
        return [json.loads(line)["custom_id"] for line in self.output.read_text().splitlines()]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_a_full_disk_is_one_line_of_error_and_the_rerun_lacks_nothing(redis_url: str, files: Files) -> None:
    # given a disk with room for a part of the answers
    with FakeWorker(redis_url) as worker:
        limited = (sys.executable, "-c", WITH_SMALL_FILES, "20000")
        full = run(*limited, *files.arguments, MLXQ_URL=redis_url)

        # then the run ends with the reason, whole lines in its file, and nothing in the queue
        assert full.returncode == 1
        assert full.stderr.splitlines()[-1] == f"Error: can't write {files.output}: File too large"
        kept = files.answered()
        assert 0 < len(kept) < NUM_REQUESTS
        assert Client(redis_url).queue_length() == 0

        # when there is room again
        done = run(*MLXQ, *files.arguments, MLXQ_URL=redis_url)

    # then what was answered is there, and no request was answered twice
    assert done.returncode == 0, done.stderr
    assert files.answered()[: len(kept)] == kept
    assert sorted(files.answered()) == sorted(worker.custom_ids) == sorted(f"r{i}" for i in range(NUM_REQUESTS))


def test_a_line_that_a_crash_cut_off_is_answered_again_and_no_other(redis_url: str, files: Files) -> None:
    # given an output file that ends in the middle of its last line
    with FakeWorker(redis_url) as worker:
        assert run(*MLXQ, *files.arguments, MLXQ_URL=redis_url).returncode == 0
        torn = files.answered()[-1]
        whole = files.output.read_bytes()
        files.output.write_bytes(whole[:-100])

        # when
        done = run(*MLXQ, *files.arguments, MLXQ_URL=redis_url)

    # then
    assert done.returncode == 0, done.stderr
    assert worker.custom_ids[NUM_REQUESTS:] == [torn]
    assert files.output.read_bytes()[: len(whole) - 1000] == whole[:-1000]
    assert sorted(files.answered()) == sorted(f"r{i}" for i in range(NUM_REQUESTS))


def test_a_second_run_into_the_same_file_is_refused_and_the_first_goes_on(redis_url: str, files: Files) -> None:
    # given a run that still waits for input
    arguments = ("run", "-i", "-", "-o", str(files.output), "--workers", "0")
    pipe = subprocess.PIPE
    with (
        FakeWorker(redis_url) as worker,
        subprocess.Popen(
            [*MLXQ, *arguments], env=environment(MLXQ_URL=redis_url), stdin=pipe, stdout=pipe, stderr=pipe, text=True
        ) as first,
    ):
        assert first.stdin is not None
        first.stdin.write('{"custom_id": "first", "prompt": "hello"}\n')
        first.stdin.flush()
        wait_until(lambda: files.output.exists() and files.output.read_text(), "its first answer")

        # when
        second = run(*MLXQ, *files.arguments, MLXQ_URL=redis_url)
        first.communicate('{"custom_id": "last", "prompt": "hello"}\n', timeout=DEADLINE_S)

    # then
    assert (second.returncode, second.stdout) == (1, "")
    assert second.stderr.splitlines()[-1] == f"Error: {files.output} is in use by another run"
    assert first.returncode == 0
    assert files.answered() == worker.custom_ids == ["first", "last"]
