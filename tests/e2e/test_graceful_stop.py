"""A worker is stopped in the middle of a full batch: it returns in time, and no job is left between two owners."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from dataclasses import dataclass

import pytest
from redis import Redis
from rq.registry import StartedJobRegistry
from tests.support.batch_files import endless, request
from tests.support.processes import MLXQ, ended, rq, run, running
from tests.support.queued_jobs import fetch, queue_of
from tests.support.waiting import FOREVER_S, wait_until

from mlxq import keys
from mlxq.queue.batch import Batch
from mlxq.queue.client import Client
from mlxq.requests.openai import parse_object
from mlxq_worker.demo.tasks import count_example

NUM_ROWS = 4
NUM_JOBS = 2 * NUM_ROWS + 5
"""A full batch, what is claimed ahead of it, some that wait, and a short one that ends first."""
MAX_TOKENS = 300
"""For which a full batch takes several times the short grace."""
GRACE_S = 0.05
LONG_GRACE_S = FOREVER_S
WORKER = (*MLXQ, "worker", "--model", "demo")

pytestmark = pytest.mark.slow


@dataclass(frozen=True, slots=True)
class Stop:
    """What the worker is sent, one after the other, and how long it is told to let its rows go on."""

    signals: tuple[signal.Signals, ...]
    grace_s: float


def enqueue(connection: Redis, long: list[str]) -> Batch:
    lines = [request("short", count_example(1, 3)), *(endless(custom_id, max_tokens=MAX_TOKENS) for custom_id in long)]
    return Client(connection).submit([parse_object(line, default_custom_id="none") for line in lines])


def num_claimed(connection: Redis) -> int:
    return int(connection.zcard(f"rq:wip:{keys.DEFAULT_QUEUE}"))


def send(supervisor: subprocess.Popen[str], signals: tuple[signal.Signals, ...], connection: Redis) -> None:
    """Each signal once the worker has obeyed the one before: of two at once a process may see one."""
    first, *more = signals
    os.kill(supervisor.pid, first)
    for number in more:
        wait_until(lambda: num_claimed(connection) <= NUM_ROWS, "what was claimed ahead to go back")
        os.kill(supervisor.pid, number)


def rq_counts(url: str) -> tuple[int, ...]:
    """How many jobs `rq info` shows as queued, executing, finished and failed."""
    line = re.search(
        r"^queue mlxq (\d+), (\d+) executing, (\d+) finished, (\d+) failed", rq(url, "info", "--raw"), re.M
    )
    assert line is not None
    return tuple(map(int, line.groups()))


@pytest.mark.parametrize(
    "stop",
    [
        Stop((signal.SIGTERM,), GRACE_S),
        Stop((signal.SIGINT,), GRACE_S),
        Stop((signal.SIGTERM, signal.SIGTERM), LONG_GRACE_S),
    ],
    ids=["SIGTERM", "SIGINT", "twice"],
)
def test_a_worker_that_is_stopped_in_a_full_batch_returns_in_time_and_leaves_nothing_in_limbo(
    stop: Stop, connection: Redis, redis_url: str
) -> None:
    custom_ids = ["short", *(f"long-{index}" for index in range(NUM_JOBS - 1))]
    batch = enqueue(connection, custom_ids[1:])
    options = ("--max-num-seqs", str(NUM_ROWS), "--grace", str(stop.grace_s))

    with running(*WORKER, *options, MLXQ_URL=redis_url) as supervisor:
        wait_until(lambda: batch.counts().num_ended, "the first answer")
        num_held = num_claimed(connection)
        send(supervisor, stop.signals, connection)
        output = ended(supervisor)

    num_finished = batch.counts().num_finished
    statuses = [fetch(connection, job_id).get_status().value for job_id in batch.job_ids()]
    assert supervisor.returncode == 0, output
    assert num_held > NUM_ROWS
    assert 1 <= num_finished <= NUM_ROWS  # rows that are let go on to their ends make it one more
    assert sorted(statuses) == ["finished"] * num_finished + ["queued"] * (NUM_JOBS - num_finished)
    assert rq_counts(redis_url) == (NUM_JOBS - num_finished, 0, num_finished, 0)
    assert "\n0 workers" in rq(redis_url, "info")
    assert StartedJobRegistry(queue=queue_of(connection)).get_job_ids(cleanup=False) == []
    assert connection.keys("rq:execution*") == []

    later = run(*WORKER, "--burst", MLXQ_URL=redis_url)

    assert later.returncode == 0, later.stderr
    assert sorted(answer.custom_id for answer in batch.as_completed()) == sorted(custom_ids)
    assert rq_counts(redis_url) == (0, 0, NUM_JOBS, 0)
    assert not any(connection.hexists(f"rq:job:{job_id}", "mlxq_strikes") for job_id in batch.job_ids())
