"""Jobs that are to run later: RQ's own scheduler puts them into the queue, beside mlxq's workers, which don't."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from redis import Redis
from rq.scheduler import RQScheduler
from tests.support.fake_engine import FakeWorker
from tests.support.queued_jobs import answer, queue_of, status

from mlxq import keys
from mlxq_worker.config import WorkerConfig


def test_a_job_that_rqs_scheduler_has_enqueued_is_answered(connection: Redis) -> None:
    # given a job whose time came a second ago, and one whose time comes tomorrow
    queue, now = queue_of(connection), datetime.now(UTC)
    line = {"custom_id": "later", "url": "/v1/completions", "body": {"prompt": "hello"}}
    due = queue.enqueue_at(now - timedelta(seconds=1), keys.FUNCTION_NAME, line)
    tomorrow = queue.enqueue_at(now + timedelta(days=1), keys.FUNCTION_NAME, line)

    # when
    scheduler = RQScheduler([keys.DEFAULT_QUEUE], connection=connection, serializer="json")
    scheduler.acquire_locks()
    scheduler.enqueue_scheduled_jobs()
    scheduler.release_locks()
    worker = FakeWorker(["mlxq"], connection=connection, serializer="json", config=WorkerConfig(model="fake"))
    worker.work(burst=True)

    # then
    assert (status(connection, due.id), status(connection, tomorrow.id)) == ("finished", "scheduled")
    assert answer(connection, due.id)["custom_id"] == "later"
