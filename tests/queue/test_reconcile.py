"""Jobs that RQ's own tools end or delete: everybody who looks at the batch is told the same, once."""

from __future__ import annotations

import threading
from base64 import b64encode
from pathlib import Path
from typing import Any
from zlib import compress

import pytest
from redis import Redis
from rq.job import Job, JobStatus
from rq.queue import Queue
from rq.results import Result
from rq.worker import SimpleWorker
from tests.support.fake_worker import FakeWorker
from tests.support.waiting import DEADLINE_S

from mlxq import keys
from mlxq.files.collection import collect
from mlxq.files.tally import Summary
from mlxq.queue import rq_keys
from mlxq.queue.batch import Batch
from mlxq.queue.client import Client
from mlxq.queue.reconcile import record_ends
from mlxq.requests.openai import ParsedLine, text_request
from mlxq.results.answer import Answer
from mlxq_worker.supervision.redis_server import private_redis

RECONCILE_S = 0.05
CRASHES = [
    "Moved to FailedJobRegistry, due to AbandonedJobError, at 2026-01-01",
    "Work-horse terminated unexpectedly; waitpid returned 9 (signal 9); ",
    "Job was stuck in intermediate queue.",
]


def requests(*custom_ids: str) -> list[ParsedLine]:
    return [text_request("Say hello", custom_id=custom_id) for custom_id in custom_ids]


def error_of(answer: Answer) -> tuple[str, str]:
    error = answer.line["error"]
    return error["code"], error["message"]


def collected(batch: Batch, folder: Path, *, follow: bool = False) -> Summary:
    return collect(batch, folder / "out", folder / "errors", on_turn=lambda _: True, follow=follow)


def fail_outside(redis: Redis, job_id: str, exc_string: str) -> None:
    job = Job.fetch(job_id, redis, "json")
    Result.create_failure(job, ttl=60, exc_string=exc_string)
    job.set_status(JobStatus.FAILED)
    Queue("mlxq", connection=redis).remove(job)


def empty_queue(redis: Redis) -> None:
    """What `rq empty` does."""
    Queue("mlxq", connection=redis).empty()  # type: ignore[no-untyped-call]


@pytest.fixture
def client(connection: Redis) -> Client:
    return Client(connection, reconcile_s=RECONCILE_S)


@pytest.fixture
def batch(client: Client) -> Batch:
    return client.submit(requests("a", "b", "c"), "b1")


def test_the_counts_know_what_a_stock_worker_failed(client: Client, batch: Batch) -> None:
    SimpleWorker(["mlxq"], connection=client.redis, serializer="json").work(burst=True)

    counts = batch.counts()

    assert (counts.num_failed, counts.is_done) == (3, True)
    assert {error_of(answer)[0] for answer in batch.as_completed(timeout_s=DEADLINE_S)} == {"failed_outside"}
    assert all("start `mlxq worker`" in error_of(answer)[1] for answer in batch.as_completed(timeout_s=DEADLINE_S))


@pytest.mark.parametrize("follow", [False, True])
def test_collecting_finds_jobs_that_were_deleted(client: Client, batch: Batch, tmp_path: Path, follow: bool) -> None:
    empty_queue(client.redis)

    summary = collected(batch, tmp_path, follow=follow)

    assert (summary.error_codes, summary.interrupted) == ((("job_lost", 3),), False)
    assert batch.counts().num_failed == 3


def test_a_job_is_counted_once_however_many_look(client: Client, batch: Batch, redis_url: str) -> None:
    empty_queue(client.redis)
    watchers = [threading.Thread(target=Client(redis_url).batch("b1").counts) for _ in range(8)]
    for watcher in watchers:
        watcher.start()
    for watcher in watchers:
        watcher.join()
    assert batch.counts().num_failed == 3
    assert client.redis.xlen(keys.batch_events("b1")) == 3


def test_jobs_that_wait_or_run_are_left_alone(client: Client, batch: Batch) -> None:
    client.redis.lpop("rq:queue:mlxq")
    client.redis.hset(Job.key_for(batch.job_id("a")), "status", "started")
    assert batch.counts().num_ended == 0
    assert batch.collector(reconcile_s=0.0).poll(0.0) == []


def test_nothing_is_recorded_behind_events_that_the_reader_does_not_know(client: Client, batch: Batch) -> None:
    # given a reader that has read nothing, and a job whose answer has expired since it ended
    client.redis.delete(Job.key_for(batch.job_id("a")))
    client.redis.xadd(keys.batch_events("b1"), {"job": batch.job_id("a"), "status": "finished"})
    # when
    num_recorded = record_ends(client.redis, "b1", [batch.job_id("a")], read_to="0-0")
    # then
    assert num_recorded == 0
    found = batch.collector(reconcile_s=0.0).poll(0.0)
    assert [(ended.status, ended.is_lost) for ended in found] == [("finished", False)]
    assert batch.counts().num_failed == 0


def test_an_ended_job_whose_answer_expired_is_not_called_lost(client: Client, batch: Batch) -> None:
    client.redis.delete(Job.key_for(batch.job_id("a")))
    client.redis.xadd(keys.batch_events("b1"), {"job": batch.job_id("a"), "status": "finished"})
    collector = batch.collector(reconcile_s=0.0)
    [answer] = collector.fetch(collector.poll(0.0))
    assert error_of(answer)[0] == "result_expired"


@pytest.mark.parametrize("exc_string", CRASHES)
def test_a_worker_that_died_is_called_that(client: Client, batch: Batch, exc_string: str) -> None:
    fail_outside(client.redis, batch.job_id("a"), exc_string)
    collector = batch.collector(reconcile_s=0.0)
    [answer] = collector.fetch(collector.poll(0.0))
    assert error_of(answer) == ("worker_crashed", f"The worker gave up the job: {exc_string.strip()}")


def test_a_job_that_rq_cancelled_is_called_that(client: Client, batch: Batch) -> None:
    Job.fetch(batch.job_id("a"), client.redis, "json").cancel()
    assert batch.counts().num_cancelled == 1
    collector = batch.collector()
    [answer] = collector.fetch(collector.poll(0.0))
    assert (answer.custom_id, error_of(answer)[0]) == ("a", "cancelled")


def test_enqueuing_again_puts_back_jobs_that_were_deleted(client: Client, batch: Batch) -> None:
    empty_queue(client.redis)

    assert batch.add(requests("a", "b", "c", "d")) == 4

    assert (batch.counts().total, client.queue_length()) == (4, 4)
    assert batch.add(requests("a", "b", "c", "d")) == 0


def test_jobs_that_were_counted_as_lost_run_after_all(client: Client, batch: Batch, redis_url: str) -> None:
    Job.fetch(batch.job_id("a"), client.redis, "json").delete()
    assert batch.counts().num_failed == 1

    assert batch.add(requests("a")) == 1

    assert batch.counts().num_ended == 0
    with FakeWorker(redis_url):
        found = {answer.custom_id: answer.is_success for answer in batch.as_completed(timeout_s=DEADLINE_S)}
    assert found == {"a": True, "b": True, "c": True}
    assert batch.counts().num_finished == batch.counts().num_ended == 3


def test_lost_and_cancelled_jobs_are_recorded_on_the_embedded_server_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with private_redis() as server:
        client = Client(server.url)
        batch = client.submit(requests("a", "b", "c"), "b1")
        client.redis.lrem("rq:queue:mlxq", 1, batch.job_id("a"))
        client.redis.delete(Job.key_for(batch.job_id("a")))
        assert batch.counts().num_failed == 1
        assert batch.add(requests("a")) == 1
        assert batch.cancel() == 3
        assert batch.counts().is_done
        client.close()


# --- Strangers who write where mlxq and RQ do -----------------------------------------------------------------


def overwrite(redis: Redis, key: str) -> None:
    redis.delete(key)
    redis.set(key, "wrong")


@pytest.mark.parametrize("follow", [False, True])
def test_a_job_that_something_else_was_written_over_is_lost_and_costs_no_other(
    client: Client, batch: Batch, redis_url: str, tmp_path: Path, follow: bool
) -> None:
    client.redis.lrem("rq:queue:mlxq", 1, batch.job_id("a"))
    overwrite(client.redis, Job.key_for(batch.job_id("a")))
    with FakeWorker(redis_url):
        batch.wait(timeout_s=DEADLINE_S)

    summary = collected(batch, tmp_path, follow=follow)

    assert (summary.error_codes, summary.succeeded, summary.interrupted) == ((("job_lost", 1),), 2, False)
    assert (batch.counts().num_failed, batch.counts().num_finished) == (1, 2)


def test_a_job_that_was_written_over_on_the_embedded_server_is_lost_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with private_redis() as server:
        client = Client(server.url)
        batch = client.submit(requests("a", "b"), "b1")
        client.redis.lrem("rq:queue:mlxq", 1, batch.job_id("a"))
        overwrite(client.redis, Job.key_for(batch.job_id("a")))
        assert batch.counts().num_failed == 1
        client.close()


def test_a_batch_with_a_job_that_was_written_over_can_be_cancelled(client: Client, batch: Batch) -> None:
    overwrite(client.redis, Job.key_for(batch.job_id("a")))

    assert batch.cancel() == 2
    assert (batch.counts().num_cancelled, batch.counts().num_failed) == (2, 1)


GARBAGE = {
    "no stream": None,
    "no answer": {"type": 1},
    "no base64": {"return_value": "?"},
    "no JSON": {"return_value": b64encode(b"{oops")},
    "no output line": {"return_value": b64encode(b'{"custom_id": 7}')},
    "no compressed error": {"exc_string": b64encode(b"oops")},
    "an empty error": {"exc_string": b64encode(compress(b""))},
}


@pytest.mark.parametrize("result", GARBAGE.values(), ids=GARBAGE.keys())
@pytest.mark.parametrize("meta", ["{oops", "[]", '{"custom_id": null}', None])
def test_an_answer_that_cannot_be_read_is_an_error_of_its_own_job(
    client: Client, batch: Batch, result: dict[Any, Any] | None, meta: str | None
) -> None:
    redis, job_id = client.redis, batch.job_id("a")
    if result is None:
        overwrite(redis, rq_keys.results(job_id))
    else:
        redis.xadd(rq_keys.results(job_id), result)
    if meta is None:
        overwrite(redis, Job.key_for(job_id))
    else:
        redis.hset(Job.key_for(job_id), "meta", meta)
    redis.xadd(keys.batch_events("b1"), {"job": job_id, "status": "failed"})

    collector = batch.collector()
    [answer] = collector.fetch(collector.poll(0.0))

    assert answer.custom_id == job_id
    assert error_of(answer)[0] in ("result_expired", "failed_outside")
