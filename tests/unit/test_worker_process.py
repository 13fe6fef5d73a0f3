"""The worker that `mlxq run` and `mlxq worker` keep: started again when it dies, given up when that makes no sense,
ended with its owner."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.waiting import DEADLINE_S, wait_until

from mlxq.errors import WorkerFailed
from mlxq_worker import exits
from mlxq_worker.supervision.restarts import FIRST_PAUSE_S, HEALTHY_S, MAX_FAILED_STARTS, MAX_PAUSE_S, Restarts
from mlxq_worker.supervision.worker_process import WorkerFoundNoRedis, WorkerGaveUp, WorkerProcess

DIES = "import sys; print('out of luck', file=sys.stderr); sys.exit(3)"
LIVES = "import time; time.sleep(3600)"
SAYS_READY = "import os, sys; os.write(int(os.environ['MLXQ_READY_FD']), b'1'); "


def python(script: str, *arguments: str) -> list[str]:
    return [sys.executable, "-S", "-c", script, *arguments]


class Rig:
    """A worker process that runs a script, and all that its owner hears of it."""

    def __init__(self, script: str, variables: dict[str, str] | None = None, **limits_s: float) -> None:
        self.told: list[str] = []
        self.released: list[str] = []
        self.died: list[bool] = []
        self.worker = WorkerProcess(
            python(script), variables or {}, tell=self.told.append, on_end=self.note_end, **limits_s
        )

    def note_end(self, name: str, has_died: bool) -> None:
        self.released.append(name)
        self.died.append(has_died)

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        return self.worker.process

    def wait_for_end(self) -> None:
        assert self.process is not None
        self.process.wait(DEADLINE_S)

    def live(self, start: float, end: float) -> bool:
        """One life of the process from its start to its end; returns whether it ended in peace."""
        self.worker.check(start)
        self.wait_for_end()
        return self.worker.check(end)


def test_it_starts_with_the_first_check_and_ends_with_the_block() -> None:
    rig = Rig(LIVES)
    with rig.worker:
        assert rig.process is None
        rig.worker.check()
        process = rig.process
        assert process is not None
        assert process.poll() is None
    assert process.poll() is not None


def test_variables_are_laid_over_the_environment(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    script = f"import os; open({str(seen)!r}, 'w').write(os.environ['MLXQ_URL'])"
    rig = Rig(script, {"MLXQ_URL": "redis://here"})
    with rig.worker:
        rig.worker.check()
        rig.wait_for_end()
    assert seen.read_text() == "redis://here"


def test_one_that_died_is_started_again_after_a_pause() -> None:
    rig = Rig(DIES)
    with rig.worker:
        rig.live(0.0, 10.0)
        assert rig.process is None
        rig.worker.check(10.0 + FIRST_PAUSE_S)
        assert rig.process is not None
    assert rig.told == ["A worker ended with code 3 and is started again; what it had in hand is done again."]


def test_one_that_never_gets_ready_is_given_up_with_its_last_lines() -> None:
    rig = Rig(DIES)
    with rig.worker:
        for life in range(MAX_FAILED_STARTS - 1):
            rig.live(life * 100.0, life * 100.0 + 1)
        with pytest.raises(WorkerFailed, match="out of luck") as caught:
            rig.live(1000.0, 1001.0)
    assert f"died {MAX_FAILED_STARTS} times in a row while it started, last with code 3" in str(caught.value)
    assert rig.released == []


def test_one_that_was_ready_is_never_given_up_and_named_each_time_it_ends() -> None:
    rig = Rig(SAYS_READY + "sys.exit(3)")
    with rig.worker:
        for life in range(MAX_FAILED_STARTS + 1):
            rig.live(life * 100.0, life * 100.0 + 1)
    assert len(set(rig.released)) == MAX_FAILED_STARTS + 1


def test_one_that_never_had_the_rights_of_a_worker_is_not_tried_again_though_it_was_ready() -> None:
    rig = Rig(f"{SAYS_READY} import sys; print('a log line\\nError: no rights'); sys.exit({exits.NO_RIGHTS})")
    with rig.worker, pytest.raises(WorkerGaveUp, match="can't work: no rights"):
        rig.live(0.0, 1.0)
    assert rig.died == [False]


def test_one_that_worked_before_waits_for_its_rights(tmp_path: Path) -> None:
    worked = tmp_path / "worked"
    rig = Rig(
        f"{SAYS_READY} import sys; from pathlib import Path; file = Path({str(worked)!r}); again = file.exists();"
        f"file.touch(); sys.exit({exits.NO_RIGHTS} if again else {exits.NO_LOGIN})"
    )
    with rig.worker:
        for life in range(MAX_FAILED_STARTS + 2):
            rig.live(life * 100.0, life * 100.0 + 1)
    assert len(rig.told) == MAX_FAILED_STARTS + 2


@pytest.mark.parametrize("code", [exits.GAVE_UP, exits.USAGE, exits.NO_REDIS])
def test_one_that_says_it_cannot_work_is_not_tried_again(code: int) -> None:
    rig = Rig(f"import sys; print('a log line\\nError: no such model\\n(look again)'); sys.exit({code})")
    with rig.worker, pytest.raises(WorkerGaveUp, match="can't work: no such model\n\\(look again"):
        rig.live(0.0, 1.0)


def test_one_that_worked_before_waits_for_redis_however_often_it_takes(tmp_path: Path) -> None:
    worked = tmp_path / "worked"
    script = (
        f"import os, sys; first = not os.path.exists({str(worked)!r}); open({str(worked)!r}, 'w');"
        f"first and os.write(int(os.environ['MLXQ_READY_FD']), b'1'); sys.exit({exits.NO_REDIS})"
    )
    rig = Rig(script)
    with rig.worker:
        for life in range(MAX_FAILED_STARTS + 2):
            rig.live(life * 100.0, life * 100.0 + 1)
    assert len(rig.told) == MAX_FAILED_STARTS + 2


def test_one_that_asks_for_it_is_started_again_at_once_and_nobody_hears_of_it() -> None:
    rig = Rig(SAYS_READY + f"sys.exit({exits.START_AGAIN})")
    with rig.worker:
        ended_in_peace = rig.live(0.0, 1.0)
        rig.worker.check(1.0)
        assert rig.process is not None
    assert (ended_in_peace, rig.told) == (False, [])


def test_one_that_ends_in_peace_says_so() -> None:
    rig = Rig(SAYS_READY + "sys.exit(0)")
    with rig.worker:
        assert rig.live(0.0, 1.0)


def test_a_signal_that_ends_it_is_named() -> None:
    rig = Rig("import os; os.kill(os.getpid(), 9)")
    with rig.worker:
        rig.live(0.0, 1.0)
    assert "SIGKILL" in rig.told[0]


@pytest.mark.parametrize(("is_ready", "stop_timeout_s"), [(True, 0.1), (False, 3600.0)], ids=["ready", "loading"])
def test_one_that_ignores_sigterm_is_killed_and_one_that_is_not_ready_at_once(
    is_ready: bool, stop_timeout_s: float, tmp_path: Path
) -> None:
    deaf = tmp_path / "deaf"
    rig = Rig(
        f"import signal, time; signal.signal(15, signal.SIG_IGN); {SAYS_READY if is_ready else ''}"
        f"open({str(deaf)!r}, 'w'); time.sleep(3600)",
        stop_timeout_s=stop_timeout_s,
    )
    with rig.worker:
        rig.worker.check()
        wait_until(deaf.exists, "it to be deaf")
        process = rig.process
        assert process is not None
    assert process.returncode == -9
    assert rig.died == [True] * is_ready


def test_one_that_is_ready_is_given_time_to_end(tmp_path: Path) -> None:
    listens = tmp_path / "listens"
    rig = Rig(
        f"import signal, time; signal.pthread_sigmask(signal.SIG_BLOCK, [15]); {SAYS_READY}"
        f"open({str(listens)!r}, 'w'); signal.sigwait([15]); time.sleep(0.2)"
    )
    with rig.worker:
        rig.worker.check()
        wait_until(listens.exists, "it to listen")
        process = rig.process
        assert process is not None
    assert process.returncode == 0
    assert rig.died == [False]


# --- When to start again --------------------------------------------------------------------------------------


def test_pauses_double_up_to_a_ceiling() -> None:
    restarts = Restarts()

    pauses = [restarts.pause_s(1.0, "") for _ in range(20)]

    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == max(pauses) == MAX_PAUSE_S


def test_a_healthy_while_forgives_the_deaths_before_it() -> None:
    restarts = Restarts()
    before = [restarts.pause_s(1.0, "") for _ in range(5)][-1]

    assert restarts.pause_s(HEALTHY_S, "") == FIRST_PAUSE_S < before


def test_a_start_that_succeeds_forgives_those_that_failed() -> None:
    restarts = Restarts()
    for _ in range(3):
        for _ in range(MAX_FAILED_STARTS - 1):
            restarts.pause_s(None, "")
        restarts.pause_s(0.0, "")

    for _ in range(MAX_FAILED_STARTS - 1):
        restarts.pause_s(None, "")
    with pytest.raises(WorkerFailed, match="while it started, by magic"):
        restarts.pause_s(None, "by magic")


@pytest.mark.parametrize(
    ("end", "has_died"),
    [
        (f"sys.exit({exits.DONE})", False),
        (f"sys.exit({exits.START_AGAIN})", False),
        (f"sys.exit({exits.STUCK})", True),
        ("sys.exit(1)", True),
        ("os.kill(os.getpid(), 9)", True),
    ],
)
def test_whether_it_died_or_ended_by_itself_is_told_to_who_looks_after_its_jobs(end: str, has_died: bool) -> None:
    rig = Rig(SAYS_READY + end)
    with rig.worker:
        rig.live(0.0, 1.0)

    assert rig.died == [has_died]


@pytest.mark.parametrize(
    ("code", "error", "exit_code"),
    [
        (exits.USAGE, WorkerGaveUp, 2),
        (exits.GAVE_UP, WorkerGaveUp, 2),
        (exits.NO_LOGIN, WorkerGaveUp, 2),
        (exits.NO_RIGHTS, WorkerGaveUp, 2),
        (exits.NO_REDIS, WorkerFoundNoRedis, 3),
    ],
)
def test_one_that_cannot_work_says_by_its_code_whether_a_restart_may_help(
    code: int, error: type[WorkerGaveUp], exit_code: int
) -> None:
    rig = Rig(f"import sys; sys.exit({code})")
    with rig.worker, pytest.raises(WorkerGaveUp) as caught:
        rig.live(0.0, 1.0)

    assert (type(caught.value), caught.value.exit_code) == (error, exit_code)
