"""RQ's own tools and classes beside workers of ours: its pool, its scheduler, its clean-up, what it does to jobs."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from redis import Redis
from rq.job import Job
from rq.queue import Queue
from rq.results import Result
from rq.scheduler import RQScheduler
from rq.worker import SimpleWorker, Worker
from tests.support.fake_engine import FakeWorker, SlowWorker
from tests.support.processes import RQ, ended, rq, running
from tests.support.queued_jobs import enqueue_plain, fetch, queue_of, status, submit
from tests.support.waiting import DEADLINE_S, wait_until

from mlxq import keys
from mlxq.queue.client import Client
from mlxq_worker.config import EngineConfig, WorkerConfig
from mlxq_worker.worker import BatchWorker

FAKE = {"MLXQ_MODEL": "fake", "MLXQ_MAX_NUM_SEQS": "4"}


def a_worker(connection: Redis, kind: type[BatchWorker] = FakeWorker, **options: object) -> BatchWorker:
    config = WorkerConfig(model="fake", engine=EngineConfig(max_num_seqs=4), **options)  # type: ignore[arg-type]
    return kind(["mlxq"], connection=connection, serializer="json", config=config)


def work(connection: Redis) -> None:
    a_worker(connection).work(burst=True)


# --- Its commands ---------------------------------------------------------------------------------------------


def test_rqs_worker_pool_runs_several_of_ours(connection: Redis, redis_url: str) -> None:
    batch = submit(connection, *("hello" for _ in range(30)))
    command = (
        *RQ,
        "worker-pool",
        "-u",
        redis_url,
        "-w",
        "tests.support.fake_engine.FakeWorker",
        "-S",
        "json",
        "-b",
        "-n",
        "2",
        "mlxq",
    )

    with running(*command, **FAKE) as process:
        output = ended(process)

    assert process.returncode == 0, output
    assert batch.counts().num_finished == 30
    assert "RQScheduler" in output


def test_a_job_that_rqs_scheduler_puts_into_the_queue_is_answered(connection: Redis) -> None:
    line = {"url": "/v1/completions", "body": {"prompt": "hello"}}
    job = queue_of(connection).enqueue_at(_a_moment_ago(), keys.FUNCTION_NAME, line)
    assert status(connection, job.id) == "scheduled"

    scheduler = RQScheduler(["mlxq"], connection=connection, serializer="json")
    scheduler.acquire_locks()
    scheduler.enqueue_scheduled_jobs()
    work(connection)

    assert status(connection, job.id) == "finished"


def _a_moment_ago() -> datetime:
    return datetime.now(UTC) - timedelta(seconds=1)


# --- What can be done with a job ------------------------------------------------------------------------------


def test_a_failed_job_that_is_requeued_is_answered(connection: Redis, redis_url: str) -> None:
    batch = submit(connection, "one", "two")
    job_id = batch.job_id("r1")
    connection.hset(Job.key_for(job_id), "timeout", "soon")
    work(connection)
    assert (batch.counts().num_finished, batch.counts().num_failed) == (1, 1)
    connection.hset(Job.key_for(job_id), "timeout", -1)

    rq(redis_url, "requeue", "--queue", "mlxq", "--all", "-S", "json")
    work(connection)

    assert status(connection, job_id) == "finished"
    assert (batch.counts().num_finished, batch.counts().num_failed) == (2, 0)


def test_a_waiting_job_that_is_deleted_costs_its_batch_that_request(connection: Redis) -> None:
    batch = submit(connection, "one", "two")
    fetch(connection, batch.job_id("r0")).delete()

    work(connection)

    assert (batch.counts().num_finished, batch.counts().num_failed) == (1, 1)


@pytest.mark.parametrize("when", ["waiting", "running"])
def test_the_line_of_a_cancelled_job_is_its_latest_result_and_not_its_return_value(
    connection: Redis, when: str
) -> None:
    """As docs/rq.md has it: RQ's `return_value` is of jobs that finished."""
    batch = submit(connection, "slow", max_tokens=100_000)
    job_id = batch.job_id("r0")

    if when == "waiting":
        batch.cancel_job(job_id)
    else:
        with working(a_worker(connection, SlowWorker)):
            wait_until(lambda: status(connection, job_id) == "started", "the row to decode")
            batch.cancel_job(job_id)
            wait_until(lambda: batch.counts().num_cancelled == 1, "the end")

    job = fetch(connection, job_id)
    result = job.latest_result()
    assert job.get_status() == "canceled"
    assert job.return_value() is None
    assert result is not None
    assert result.type == Result.Type.STOPPED
    assert result.return_value["custom_id"] == "r0"


def test_a_job_of_ours_that_depends_on_a_stock_job_is_answered_after_it(connection: Redis) -> None:
    stock = Queue("stock", connection=connection)
    parent = stock.enqueue("operator.add", 2, 3)
    child = enqueue_plain(connection, depends_on=parent)
    work(connection)
    assert status(connection, child.id) == "deferred"

    SimpleWorker([stock], connection=connection).work(burst=True)
    work(connection)

    assert status(connection, child.id) == "finished"


def test_a_stock_job_that_depends_on_one_of_ours_is_run_after_it(connection: Redis) -> None:
    stock = Queue("stock", connection=connection)
    child = stock.enqueue("operator.add", 2, 3, depends_on=enqueue_plain(connection))
    work(connection)

    SimpleWorker([stock], connection=connection).work(burst=True)

    assert Job.fetch(child.id, connection=connection).return_value() == 5


# --- What its tools show of a worker --------------------------------------------------------------------------


@contextmanager
def working(worker: BatchWorker) -> Iterator[None]:
    thread = threading.Thread(target=worker.work)
    thread.start()
    try:
        yield
    finally:
        for _ in range(2):
            worker.request_stop(signal.SIGTERM, None)
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def test_the_working_time_is_the_workers_and_not_the_sum_over_its_rows(connection: Redis) -> None:
    submit(connection, *("slow" for _ in range(4)), max_tokens=15)
    worker = a_worker(connection, SlowWorker)

    started = time.monotonic()
    worker.work(burst=True)
    wall_s = time.monotonic() - started

    [shown] = [Worker.find_by_key(worker.key, connection=connection)]
    assert shown is not None
    assert 0.3 <= shown.total_working_time <= wall_s  # one row takes 15 steps of 20 ms


def test_an_entry_that_nobody_renews_is_gone_within_a_minute(connection: Redis) -> None:
    with working(a_worker(connection)):
        wait_until(lambda: Client(connection).num_workers() == 1, "the worker")
        [key] = connection.smembers("rq:workers:mlxq")
        wait_until(lambda: 0 < connection.ttl(key) <= 60, "its first beat")
        assert connection.hexists(key, "mlxq_machine")


# --- Its clean-up ---------------------------------------------------------------------------------------------


def test_jobs_that_rqs_clean_up_fails_while_their_worker_is_cut_off_end_as_answered(
    connection: Redis, redis_url: str
) -> None:
    # given a worker that is frozen for longer than its leases last
    jobs = [enqueue_plain(connection, prompt="hello") for _ in range(6)]
    command = (
        *RQ,
        "worker",
        "-u",
        redis_url,
        "-w",
        "tests.support.fake_engine.HeldWorker",
        "--serializer",
        "json",
        "mlxq",
    )
    with running(*command, **FAKE, MLXQ_LEASE_S="1") as process:
        wait_until(lambda: connection.zcard("rq:wip:mlxq") == 6, "the worker to hold all")
        process.send_signal(signal.SIGSTOP)

        # when somebody looks meanwhile
        wait_until(lambda: "6 failed" in rq(redis_url, "info"), "the clean-up")
        process.send_signal(signal.SIGCONT)
        connection.set("go", 1)

        # then they end as answered all the same
        wait_until(lambda: all(status(connection, job.id) == "finished" for job in jobs), "all answers")

    assert all(fetch(connection, job.id).return_value() for job in jobs)
    assert connection.zcard("rq:failed:mlxq") == 0
    assert connection.zcard("rq:finished:mlxq") == 6
    assert not any(connection.hexists(job.key, "mlxq_strikes") for job in jobs)
