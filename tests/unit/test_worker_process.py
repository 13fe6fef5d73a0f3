"""The worker that `mlxq run` keeps: restarted when it dies, given up when that doesn't help, ended with its owner."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlxq.errors import WorkerFailed
from mlxq_worker.worker_process import FIRST_PAUSE_S, MAX_DEATHS, WorkerProcess

DIES = "import sys; print('out of luck', file=sys.stderr); sys.exit(3)"
LIVES = "import time; time.sleep(60)"


def python(script: str, *arguments: str) -> list[str]:
    return [sys.executable, "-S", "-c", script, *arguments]


def supervised(
    command: list[str], variables: dict[str, str] | None = None, told: list[str] | None = None
) -> WorkerProcess:
    heard: list[str] = [] if told is None else told
    return WorkerProcess(command, variables or {}, tell=heard.append)


def process_of(worker: WorkerProcess) -> subprocess.Popen[bytes] | None:
    return worker._process


def wait_for_end(worker: WorkerProcess) -> None:
    process = process_of(worker)
    assert process is not None
    process.wait(10)


def test_it_starts_with_the_first_check_and_ends_with_the_block() -> None:
    with supervised(python(LIVES)) as worker:
        assert process_of(worker) is None
        worker.check(0)
        process = process_of(worker)
        assert process is not None
        assert process.poll() is None
    assert process.poll() is not None


def test_variables_are_laid_over_the_environment(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    script = f"import os; open({str(seen)!r}, 'w').write(os.environ['MLXQ_URL'])"
    with supervised(python(script), {"MLXQ_URL": "redis://here"}) as worker:
        worker.check(0)
        wait_for_end(worker)
    assert seen.read_text() == "redis://here"


def test_one_that_died_is_started_again_after_a_pause() -> None:
    told: list[str] = []
    with supervised(python(DIES), told=told) as worker:
        worker.check(0, now=0.0)
        wait_for_end(worker)
        assert told == []
        worker.check(0, now=10.0)
        assert process_of(worker) is None
        assert told == ["A worker ended with code 3 and is started again; what it had in hand is done again."]
        worker.check(0, now=10.0 + FIRST_PAUSE_S)
        assert process_of(worker) is not None


def die_often(worker: WorkerProcess, num_done_per_life: int) -> None:
    for life in range(MAX_DEATHS + 1):
        worker.check(life * num_done_per_life, now=life * 100.0)  # buries the last one
        worker.check(life * num_done_per_life, now=life * 100.0 + 99.0)  # starts the next one
        wait_for_end(worker)


def test_one_that_keeps_dying_is_given_up_with_its_last_lines() -> None:
    with supervised(python(DIES)) as worker, pytest.raises(WorkerFailed, match="out of luck") as caught:
        die_often(worker, num_done_per_life=0)
    assert f"died {MAX_DEATHS} times in a row, last with code 3" in str(caught.value)


def test_deaths_between_answers_are_forgiven() -> None:
    with supervised(python(DIES)) as worker:
        die_often(worker, num_done_per_life=1)


def test_one_that_says_it_cannot_work_is_not_tried_again() -> None:
    with supervised(python("raise SystemExit('a log line\\nError: no such model\\n(look again)')")) as worker:
        worker.check(0)
        wait_for_end(worker)
        with pytest.raises(WorkerFailed, match="can't work: no such model\n\\(look again"):
            worker.check(0)


def test_one_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("mlxq_worker.worker_process.STOP_TIMEOUT_S", 0.1)
    deaf = tmp_path / "deaf"
    script = f"import signal, time; signal.signal(15, signal.SIG_IGN); open({str(deaf)!r}, 'w'); time.sleep(60)"
    with supervised(python(script)) as worker:
        worker.check(0)
        deadline = time.monotonic() + 10
        while not deaf.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process = process_of(worker)
        assert process is not None
    assert process.returncode == -9
