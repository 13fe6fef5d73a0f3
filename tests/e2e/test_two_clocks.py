"""Two supervised workers on machines of one name, whose clocks are 30 s apart: neither takes the other for dead.

What tells the machines apart, and what a clock says, is patched in both processes of each worker. (libfaketime can't
do it: since Python 3.11 waits are told to end by a clock that it moves, in calls that it doesn't.)
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from redis import Redis
from rq.suspension import resume, suspend
from rq.worker import Worker
from tests.support.batch_files import demo_examples, requests, text_of
from tests.support.processes import MLXQ, ended, running
from tests.support.queued_jobs import num_strikes
from tests.support.waiting import wait_until

from mlxq.queue.client import Client
from mlxq.requests.openai import parse_object

LEASE_S = 20
CLOCKS_APART_S = 30
"""More than a lease, which is long enough for a worker on a busy machine to keep it."""
FEW = 5
EXAMPLES = demo_examples(60)
WORKER = (*MLXQ, "worker", "--model", "demo", "--max-num-seqs", "2")
ON_A_MACHINE = """
import datetime, os, time
import mlxq.machine

ahead, time_of_day, real = float(os.environ["AHEAD_S"]), time.time, datetime.datetime

class Datetime(real):
    @classmethod
    def now(cls, tz=None):
        return real.fromtimestamp(time_of_day() + ahead, tz)

time.time = lambda: time_of_day() + ahead
datetime.datetime = Datetime
mlxq.machine.machine_id = lambda file=None: os.environ["MACHINE"]
"""
"""Python runs it as its own start as `sitecustomize`, before anything else is imported."""

pytestmark = pytest.mark.slow


def test_workers_whose_clocks_are_apart_leave_each_other_alone(
    connection: Redis, redis_url: str, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(ON_A_MACHINE)
    common = {
        "MLXQ_URL": redis_url,
        "MLXQ_LEASE_S": str(LEASE_S),
        "MLXQ_MAINTENANCE_S": "0.2",
        "PYTHONPATH": os.pathsep.join((str(tmp_path), *filter(None, sys.path))),
    }
    suspend(connection)  # until both workers are ready
    lines = [parse_object(line, default_custom_id="none") for line in requests(EXAMPLES)]
    batches = [Client(connection).submit(lines)]

    def answered() -> dict[str, int]:
        """How many jobs each worker has answered."""
        workers = Worker.all(connection=connection, serializer="json")
        return {worker.name: worker.successful_job_count for worker in workers}

    def have_both_worked() -> bool:
        """All is answered; and where one of them has hardly come to it, there is more to do."""
        if any(batch.counts().num_ended < len(lines) for batch in batches):
            return False
        if min(answered().values()) < FEW:
            batches.append(Client(connection).submit(lines))
            return False
        return True

    def num_in_state(*states: str) -> int:
        return sum(worker.get_state() in states for worker in Worker.all(connection=connection, serializer="json"))

    with (
        running(*WORKER, **common, MACHINE="one", AHEAD_S="0") as here,
        running(*WORKER, **common, MACHINE="another", AHEAD_S=str(CLOCKS_APART_S)) as there,
    ):
        wait_until(lambda: num_in_state("suspended") == 2, "two workers that are ready")
        workers = Worker.all(connection=connection, serializer="json")
        names = {worker.name for worker in workers}
        beats = sorted(worker.last_heartbeat.timestamp() for worker in workers)
        assert beats[1] - beats[0] > CLOCKS_APART_S / 2  # the clocks are apart indeed
        resume(connection)
        wait_until(have_both_worked, "all answers")
        counts = answered()
        outputs = []
        for supervisor in (here, there):
            supervisor.terminate()
            outputs.append(ended(supervisor))

    answers = {answer.custom_id: answer.line for answer in batches[0].as_completed()}
    right = [name for name, example in EXAMPLES.items() if text_of(answers[name]) == example.expected_text]
    assert len(right) >= 0.95 * len(EXAMPLES)
    assert counts.keys() == names
    assert sum(counts.values()) == len(batches) * len(EXAMPLES)
    assert num_strikes(connection) == 0
    assert not any(word in output for output in outputs for word in ("Requeued", "died", "gone", "started again"))
