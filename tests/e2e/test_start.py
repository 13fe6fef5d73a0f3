"""What `mlxq run` does before its first token, counted: each process that it starts, each module that it imports first.

Time can't be held by a test, these can. `python -m tests.bench.startup` has the seconds.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass

import pytest
from tests.support.batch_files import write_lines
from tests.support.processes import MLXQ, run

RECORDER = """
import json, os, sys, time
folder = os.environ["RECORDED"]
log = open(os.path.join(folder, f"{time.monotonic_ns()}.jsonl"), "a", buffering=1)
def record(event, args):
    if event == "import":
        log.write(json.dumps([event, args[0]]) + "\\n")
    elif event == "subprocess.Popen":
        log.write(json.dumps([event, " ".join(map(str, args[1]))]) + "\\n")
    elif event == "open" and "transformers/models/" in str(args[0]) and str(args[0]).endswith(".py"):
        log.write(json.dumps([event, args[0]]) + "\\n")
sys.addaudithook(record)
"""

MOST_BEFORE_THE_WORKER = 240
"""Modules that are asked for before the worker is started, those that aren't there among them."""
MOST_OF_OURS = 243
"""Modules of ours that a worker takes to its first token."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a process did, in its order: what it imported, started and read."""

    events: list[tuple[str, str]]

    def of(self, event: str) -> list[str]:
        return [what for kind, what in self.events if kind == event]

    @property
    def imported(self) -> set[str]:
        return set(self.of("import"))


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> list[Start]:
    """The Python processes of a run with one request, in order of their start."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "sitecustomize.py").write_text(RECORDER)
    (folder / "recorded").mkdir()
    write_lines(folder / "in.jsonl", [{"custom_id": "a", "prompt": "Hi", "max_tokens": 2}])
    paths = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    done = run(
        *("env", f"PYTHONPATH={paths}", *MLXQ, "run", "-i", str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl")),
        RECORDED=str(folder / "recorded"),
    )
    assert done.returncode == 0, done.stderr
    logs = sorted((folder / "recorded").iterdir(), key=lambda path: int(path.stem))
    return [Start([tuple(json.loads(line)) for line in log.read_text().splitlines()]) for log in logs]


def test_a_run_is_two_interpreters_a_redis_and_what_ends_that(starts: list[Start]) -> None:
    command, worker = starts
    assert [program.split()[0].rpartition("/")[2][:6] for program in command.of("subprocess.Popen")] == [
        "redis-",
        "sh",
        "python",
    ]
    assert not worker.of("subprocess.Popen")


def test_the_worker_is_started_before_what_it_does_not_need_is_imported(starts: list[Start]) -> None:
    command = starts[0]
    started = max(index for index, (event, _) in enumerate(command.events) if event == "subprocess.Popen")
    before = {what for event, what in command.events[:started] if event == "import"}
    assert len(before) <= MOST_BEFORE_THE_WORKER
    assert before.isdisjoint({"asyncio", "jinja2", "numpy", "pyarrow", "redis", "rich", "rq", "ssl", "zstandard"})
    assert {"redis", "rich", "rq"} <= command.imported


def test_a_worker_imports_nothing_but_what_it_decodes_with(starts: list[Start]) -> None:
    worker = starts[1]
    assert {"mlx_lm", "redis", "rq", "tokenizers"} <= worker.imported
    assert worker.imported.isdisjoint({"fakeredis", "pandas", "prometheus_client", "pyarrow", "rich", "starlette"})
    assert len([name for name in worker.imported if name.startswith("mlxq")]) <= MOST_OF_OURS


def test_a_worker_reads_through_the_sources_of_transformers_models_once(starts: list[Start]) -> None:
    times_read = Counter(starts[1].of("open"))
    assert len(times_read) > 100
    assert times_read.total() < 1.2 * len(times_read), "a few are looked at again by others"
