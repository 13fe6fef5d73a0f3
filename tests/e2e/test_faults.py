"""Whatever is killed, frozen or cut off, a run ends with one right answer for each request: `tests/faults`, briefly."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.faults.schedule import redis_errors
from tests.support.processes import environment

ROOT = Path(__file__).parents[2]
OPTIONS = ("--seconds", "18", "--requests", "120", "--workers", "2", "--seed", "350", "--patience", "600")
"""The seed is one of those that have something of everything happen in so few seconds, and three kills of workers."""

FAULTS = ("worker kills", "supervisor kills", "producer kills", "cuts", "freezes")


@pytest.mark.slow
def test_every_request_is_answered_once_and_rightly_whatever_is_killed(redis_program: str, tmp_path: Path) -> None:
    command = (sys.executable, "-m", "tests.faults", *OPTIONS, "--directory", str(tmp_path))

    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)

    print(done.stdout, done.stderr)
    assert done.returncode == 0
    counts = {name: int(number) for number, name in re.findall(r"(\d+) ([^,\n]+)", done.stdout.splitlines()[-1])}
    assert (counts["output lines"], counts["error lines"], counts["Redis kills"]) == (120, 0, 3)
    assert min(counts[name] for name in FAULTS) >= 1
    assert counts["worker kills"] >= 2
    assert counts["jobs in killed hands"] >= 1  # each kill waits for some
    assert counts["requeued strikes"] >= 1


@pytest.mark.slow
def test_redis_errors_cost_nobody_a_strike_and_every_request_is_answered_once(
    redis_program: str, tmp_path: Path
) -> None:
    options = ("--redis-errors", "--seconds", "12", "--requests", "80", "--workers", "2", "--patience", "600")
    command = (sys.executable, "-m", "tests.faults", *options, "--directory", str(tmp_path))

    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)

    print(done.stdout, done.stderr)
    assert done.returncode == 0
    counts = {name: int(number) for number, name in re.findall(r"(\d+) ([^,\n]+)", done.stdout.splitlines()[-1])}
    assert (counts["output lines"], counts["error lines"], counts["requeued strikes"]) == (80, 0, 0)
    assert all(counts[fault.kind] == 1 for fault in redis_errors(12.0))
