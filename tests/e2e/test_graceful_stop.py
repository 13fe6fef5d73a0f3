"""A worker is stopped in the middle of a full batch: it returns in time, and no job is left between two owners.

Each way to stop it has a queue of its own, and one worker answers what is left in all of them.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from redis import Redis
from rq.registry import StartedJobRegistry
from tests.support.batch_files import endless, request
from tests.support.processes import MLXQ, ended, rq, run, running
from tests.support.queued_jobs import fetch
from tests.support.redis_at import redis_at
from tests.support.waiting import FOREVER_S, wait_until

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


STOPS = {
    "SIGTERM": Stop((signal.SIGTERM,), GRACE_S),
    "SIGINT": Stop((signal.SIGINT,), GRACE_S),
    "twice": Stop((signal.SIGTERM, signal.SIGTERM), LONG_GRACE_S),
}
"""By the name of the queue."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """What came of a worker that was stopped, as it was right after, and its batch."""

    exit_code: int
    output: str
    num_held: int
    batch: Batch
    num_finished: int
    statuses: list[str]
    rq_counts: tuple[int, ...]
    rq_info: str
    started: list[str]
    executions: list[bytes]


def enqueue(connection: Redis, queue: str) -> Batch:
    long = (endless(f"long-{index}", max_tokens=MAX_TOKENS) for index in range(NUM_JOBS - 1))
    lines = [request("short", count_example(1, 3)), *long]
    return Client(connection, queue).submit([parse_object(line, default_custom_id="none") for line in lines])


def num_claimed(connection: Redis, queue: str) -> int:
    return int(connection.zcard(f"rq:wip:{queue}"))


def send(supervisor: subprocess.Popen[str], signals: tuple[signal.Signals, ...], connection: Redis, queue: str) -> None:
    """Each signal once the worker has obeyed the one before: of two at once a process may see one."""
    first, *more = signals
    os.kill(supervisor.pid, first)
    for number in more:
        wait_until(lambda: num_claimed(connection, queue) <= NUM_ROWS, "what was claimed ahead to go back")
        os.kill(supervisor.pid, number)


def rq_counts(url: str, queue: str) -> tuple[int, ...]:
    """How many jobs `rq info` shows as queued, executing, finished and failed."""
    line = re.search(
        rf"^queue {queue} (\d+), (\d+) executing, (\d+) finished, (\d+) failed", rq(url, "info", "--raw"), re.M
    )
    assert line is not None
    return tuple(map(int, line.groups()))


def stopped(connection: Redis, url: str, queue: str, stop: Stop) -> Stopped:
    batch = enqueue(connection, queue)
    options = ("--queue", queue, "--max-num-seqs", str(NUM_ROWS), "--grace", str(stop.grace_s))
    with running(*WORKER, *options, MLXQ_URL=url) as supervisor:
        wait_until(lambda: batch.counts().num_ended, "the first answer")
        num_held = num_claimed(connection, queue)
        send(supervisor, stop.signals, connection, queue)
        output = ended(supervisor)
    return Stopped(
        exit_code=supervisor.returncode,
        output=output,
        num_held=num_held,
        batch=batch,
        num_finished=batch.counts().num_finished,
        statuses=[fetch(connection, job_id).get_status().value for job_id in batch.job_ids()],
        rq_counts=rq_counts(url, queue),
        rq_info=rq(url, "info"),
        started=StartedJobRegistry(queue, connection=connection).get_job_ids(cleanup=False),
        executions=connection.keys("rq:execution*"),
    )


@pytest.fixture(scope="module")
def server(redis_server_url: str) -> Iterator[Redis]:
    """An empty Redis that stays as the tests before have left it."""
    with redis_at(redis_server_url) as connection:
        connection.flushall()
        yield connection


@pytest.fixture(scope="module")
def all_stopped(server: Redis, redis_server_url: str) -> dict[str, Stopped]:
    return {queue: stopped(server, redis_server_url, queue, stop) for queue, stop in STOPS.items()}


@pytest.fixture(scope="module")
def later(all_stopped: dict[str, Stopped], redis_server_url: str) -> subprocess.CompletedProcess[str]:
    """A worker that answers what is left."""
    queues = [word for queue in all_stopped for word in ("--queue", queue)]
    return run(*WORKER, *queues, "--burst", MLXQ_URL=redis_server_url)


@pytest.mark.parametrize("queue", STOPS)
def test_a_worker_that_is_stopped_in_a_full_batch_returns_in_time_and_leaves_nothing_in_limbo(
    queue: str, all_stopped: dict[str, Stopped]
) -> None:
    found = all_stopped[queue]

    assert found.exit_code == 0, found.output
    assert found.num_held > NUM_ROWS
    assert 1 <= found.num_finished <= NUM_ROWS  # rows that are let go on to their ends make it one more
    num_left = NUM_JOBS - found.num_finished
    assert sorted(found.statuses) == ["finished"] * found.num_finished + ["queued"] * num_left
    assert found.rq_counts == (num_left, 0, found.num_finished, 0)
    assert "\n0 workers" in found.rq_info
    assert (found.started, found.executions) == ([], [])


@pytest.mark.parametrize("queue", STOPS)
def test_another_worker_answers_what_it_gave_back(
    queue: str, all_stopped: dict[str, Stopped], later: subprocess.CompletedProcess[str], server: Redis
) -> None:
    batch = all_stopped[queue].batch

    assert later.returncode == 0, later.stderr
    long = [f"long-{index}" for index in range(NUM_JOBS - 1)]
    assert sorted(answer.custom_id for answer in batch.as_completed()) == sorted(["short", *long])
    assert batch.counts().num_finished == NUM_JOBS
    assert not any(server.hexists(f"rq:job:{job_id}", "mlxq_strikes") for job_id in batch.job_ids())
