"""Whether a process lives, and how one is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlxq_worker.processes import ParentWatch, end_process, is_alive

LIVES = "import sys; print(flush=True); sys.stdin.read()"
IS_DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {LIVES}"
WATCHES_PARENT = """
import os, sys
from mlxq_worker.processes import ParentWatch
watch = ParentWatch(os.getppid())
early = watch.is_gone()
print(flush=True)
sys.stdin.read()
open(sys.argv[1], "w").write(f"{early} {watch.is_gone()}")
"""


def started(script: str) -> subprocess.Popen[bytes]:
    """A process that has come to the end of its preparations."""
    process = subprocess.Popen([sys.executable, "-S", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


def test_a_process_is_alive_until_its_end_has_been_waited_for() -> None:
    process = started(LIVES)
    before = is_alive(process.pid)

    process.kill()
    process.wait()

    assert (before, is_alive(process.pid)) == (True, False)
    close_pipes(process)


def test_a_process_of_somebody_else_and_a_number_that_is_no_pid_here_count_as_alive() -> None:
    assert is_alive(1)
    assert is_alive(2**80)


@pytest.mark.parametrize(
    ("script", "timeout_s", "signum"), [(LIVES, 60.0, signal.SIGTERM), (IS_DEAF, 0.1, signal.SIGKILL)]
)
def test_a_process_is_asked_to_end_and_killed_only_if_it_does_not(
    script: str, timeout_s: float, signum: signal.Signals
) -> None:
    process = started(script)

    end_process(process, timeout_s)

    assert process.returncode == -signum
    close_pipes(process)


def test_a_process_that_is_not_our_parent_is_gone_once_it_has_ended() -> None:
    process = started(LIVES)
    watch = ParentWatch(process.pid)
    before = watch.is_gone()

    process.kill()
    process.wait()

    assert (before, watch.is_gone()) == (False, True)
    close_pipes(process)


def test_a_parent_is_gone_once_we_have_another_one(tmp_path: Path) -> None:
    # given a process whose parent ends while it is still a zombie of ours, with a pid that lives on
    told = tmp_path / "told"
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {WATCHES_PARENT!r}, {str(told)!r}])"
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", f"{parent}; sys.stdin.read(1)"], stdin=subprocess.PIPE, stdout=writer
    )
    os.close(writer)

    os.read(reader, 1)  # the grandchild knows its parent
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert process.stdin is not None
    process.stdin.close()  # and the grandchild goes on
    while os.read(reader, 1):  # until it has ended
        pass

    assert told.read_text() == "False True"
    process.wait()
    os.close(reader)
