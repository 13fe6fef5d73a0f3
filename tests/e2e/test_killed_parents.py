"""Jobs that wait for others while the workers of those are killed again and again: none waits for ever."""

from __future__ import annotations

import signal
import subprocess
from contextlib import ExitStack

import pytest
from redis import Redis
from rq.queue import Queue
from tests.support.processes import RQ, running
from tests.support.queued_jobs import enqueue_plain, queue_of, status
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

NUM_PARENTS = 200
ENDED_BETWEEN_KILLS = 25
VARIABLES = {
    "MLXQ_MODEL": "fake",
    "MLXQ_MAX_NUM_SEQS": "4",
    "MLXQ_LEASE_S": "1",
    "MLXQ_MAINTENANCE_S": "0.3",
}


def has_survivors(connection: Redis) -> bool:
    """Whether a job that a worker's death has cost a strike hasn't ended."""
    jobs = [connection.hmget(key, "mlxq_strikes", "status") for key in connection.scan_iter("rq:job:*", _type="hash")]
    return any(strikes and status != b"finished" for strikes, status in jobs)


def test_two_hundred_dependents_are_enqueued_once_each_while_workers_are_killed(
    connection: Redis, redis_url: str
) -> None:
    after = Queue("after", connection=connection)
    parents = [enqueue_plain(connection, prompt="slow") for _ in range(NUM_PARENTS)]
    children = [after.enqueue("operator.add", 1, 1, depends_on=parent).id for parent in parents]
    command = (*RQ, "worker", "-u", redis_url, "-w", "tests.support.fake_engine.FakeWorker", "-S", "json", "mlxq")

    num_kills = 0
    with ExitStack() as stack:

        def start() -> subprocess.Popen[str]:
            return stack.enter_context(running(*command, **VARIABLES))

        workers = [start(), start()]
        for milestone in range(ENDED_BETWEEN_KILLS, NUM_PARENTS, ENDED_BETWEEN_KILLS):
            wait_until(lambda: queue_of(connection).finished_job_registry.count >= milestone, f"{milestone} answers")  # noqa: B023
            # So that no job is there at three deaths, and fails for that.
            wait_until(lambda: not has_survivors(connection), "the end of all that was there at the last kill")
            workers.pop(0).send_signal(signal.SIGKILL)
            num_kills += 1
            workers.append(start())
        wait_until(lambda: queue_of(connection).finished_job_registry.count == NUM_PARENTS, "all answers")

    assert num_kills == 7
    assert connection.zcard("rq:deferred:after") == 0
    assert sorted(after.job_ids) == sorted(children)
    assert {status(connection, parent.id) for parent in parents} == {"finished"}
