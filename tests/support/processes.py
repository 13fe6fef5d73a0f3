"""Commands as processes of their own, for tests: each wait has a deadline, and no process outlives its test.

They import what this process imports, and see none of the developer's own settings.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from click.testing import CliRunner
from rq.cli import main as rq_main
from tests.support.waiting import DEADLINE_S

MLXQ = (sys.executable, "-m", "mlxq")
RQ = (sys.executable, "-m", "rq.cli")


def environment(**variables: str) -> dict[str, str]:
    """Ours, with some variables set."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLXQ_", "REDIS_"))}
    ours = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "MLXQ_CACHE_DIR": os.devnull}
    return inherited | ours | variables


def run(*command: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command's output and exit code once it has ended."""
    return subprocess.run(
        command, env=environment(**variables), cwd=cwd, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )


@contextmanager
def running(*command: str, cwd: Path | None = None, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """The command while it runs, in a process group of its own; killed in the end if it still does.

    Its output, standard error included, is a pipe: read it with `ended`.
    """
    process = subprocess.Popen(
        command,
        env=environment(**variables),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        print(ended(process))  # which pytest shows if the test fails


def ended(process: subprocess.Popen[str]) -> str:
    """Waits for the process to end and returns its output."""
    return process.communicate(timeout=DEADLINE_S)[0]


def rq(url: str, *arguments: str) -> str:
    """What one of RQ's own commands prints, in this process; it must succeed."""
    patient = f"{url}?socket_timeout={DEADLINE_S}"
    done = CliRunner().invoke(rq_main, [*arguments, "-u", patient], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout
