"""The client against a real Redis: idempotent submission, each answer once, and cancelling."""

from __future__ import annotations

import json
import threading
from base64 import b64encode
from collections.abc import Iterable, Iterator
from typing import Any, cast

import pytest
from redis import Redis
from redis.exceptions import ResponseError
from rq.job import Job, JobStatus
from rq.queue import Queue
from rq.registry import CanceledJobRegistry
from tests.support.waiting import DEADLINE_S

from mlxq import keys
from mlxq.errors import BatchNotFound, ConfigError, QueueError, QueueUnavailable, RequestError
from mlxq.queue.batch import Batch
from mlxq.queue.client import Client
from mlxq.queue.connect import queue_errors
from mlxq.requests.openai import ParsedLine, text_request
from mlxq.results.answer import Answer


def requests(*custom_ids: str) -> list[ParsedLine]:
    return [text_request("Say hello", custom_id=custom_id) for custom_id in custom_ids]


def numbered(count: int) -> list[ParsedLine]:
    return requests(*(f"r{i}" for i in range(count)))


def finish(redis: Redis, batch: Batch, *custom_ids: str, events: int = 1) -> None:
    """End jobs as a worker does, as far as the client can see."""
    for custom_id in custom_ids:
        job_id = batch.job_id(custom_id)
        line = {"id": job_id, "custom_id": custom_id, "response": {"status_code": 200, "body": {}}, "error": None}
        answer = b64encode(json.dumps(line).encode())
        redis.xadd(f"rq:results:{job_id}", {"type": 1, "worker_name": "w", "return_value": answer})
        redis.hset(Job.key_for(job_id), "status", "finished")
        for _ in range(events):
            redis.xadd(keys.batch_events(batch.id), {"job": job_id, "status": "finished"})
        redis.hincrby(keys.batch(batch.id), "finished", 1)


def ids(found: Iterable[Answer]) -> list[str]:
    return [answer.custom_id for answer in found]


def error_code(answer: Answer) -> str:
    code: str = answer.line["error"]["code"]
    return code


@pytest.fixture
def client(connection: Redis) -> Client:
    return Client(connection)


def test_a_submitted_job_is_what_rq_and_the_worker_expect(client: Client) -> None:
    [line] = requests("r/1 ä")
    batch = client.submit([line])
    [job] = Queue("mlxq", connection=client.redis, serializer="json").jobs
    assert job.id == batch.job_id("r/1 ä")
    assert job.func_name == keys.FUNCTION_NAME
    assert job.args == [line.payload]
    assert job.meta == {"custom_id": "r/1 ä", "batch": batch.id}
    assert (job.timeout, job.result_ttl, job.failure_ttl) == (-1, keys.RESULT_TTL_S, keys.FAILURE_TTL_S)
    assert job.retries_left == 3
    assert job.get_status() == JobStatus.QUEUED
    assert "hello" not in (job.description or "")


def test_a_batch_is_described_with_its_jobs_in_input_order(client: Client) -> None:
    batch = client.submit(numbered(3), "b1")
    counts = batch.counts()
    assert (counts.batch_id, counts.queue, counts.total, counts.sealed) == ("b1", "mlxq", 3, True)
    assert not counts.is_done
    assert client.batch_ids() == ["b1"]
    members = client.redis.zrange(keys.batch_jobs("b1"), 0, -1, withscores=True)
    assert members == [(batch.job_id(f"r{i}").encode(), float(i)) for i in range(3)]
    for key in (keys.batch("b1"), keys.batch_jobs("b1")):
        assert 0 < client.redis.ttl(key) <= keys.BATCH_TTL_S


def test_submitting_again_neither_doubles_nor_resets_jobs(client: Client) -> None:
    batch = client.submit(numbered(3), "b1")
    finish(client.redis, batch, "r0")
    client.submit(numbered(4), "b1")
    assert client.queue_length() == 4
    assert batch.counts().total == 4
    assert client.redis.hget(Job.key_for(batch.job_id("r0")), "status") == b"finished"


def test_a_custom_id_given_twice_is_the_error_that_a_file_gives_and_nothing_is_enqueued(client: Client) -> None:
    twice = [text_request("one", custom_id="r"), *numbered(1), text_request("two", custom_id="r")]
    with pytest.raises(RequestError, match="request 3 has the custom_id of request 1: every id") as caught:
        client.submit(twice, "b1")
    assert (caught.value.param, caught.value.code) == ("custom_id", "duplicate_custom_id")
    assert client.queue_length() == 0


def test_a_custom_id_given_twice_is_noticed_across_chunks(client: Client) -> None:
    lines = iter([*numbered(keys.CHUNK + 1), *requests("r3")])
    with pytest.raises(RequestError, match=f"request {keys.CHUNK + 2} has the custom_id of request 4"):
        client.submit(lines, "b1")
    assert client.queue_length() == keys.CHUNK, "what was read before is there"


def test_a_producer_killed_between_chunks_completes_its_batch_when_rerun(client: Client) -> None:
    def dying() -> Iterator[ParsedLine]:
        yield from numbered(keys.CHUNK + 7)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.submit(dying(), "b1")
    halfway = client.batch("b1").counts()
    assert (halfway.total, halfway.sealed) == (keys.CHUNK, False)

    client.submit(numbered(keys.CHUNK + 7), "b1")

    assert client.queue_length() == keys.CHUNK + 7
    assert client.batch("b1").counts().total == keys.CHUNK + 7
    assert client.batch("b1").counts().sealed


def test_two_producers_of_the_same_batch_do_not_double_jobs(client: Client, redis_url: str) -> None:
    lines = numbered(600)
    producers = [threading.Thread(target=lambda: Client(redis_url).submit(lines, "b1")) for _ in range(3)]
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join()
    assert client.queue_length() == 600
    assert client.batch("b1").counts().total == 600


def test_an_empty_batch_exists_and_is_done(client: Client) -> None:
    batch = client.submit([])
    assert batch.counts().is_done
    assert list(batch.as_completed(timeout_s=DEADLINE_S)) == []


def test_answers_come_in_the_order_in_which_jobs_end(client: Client) -> None:
    batch = client.submit(numbered(3))
    finish(client.redis, batch, "r2", "r0", "r1")
    found = list(batch.as_completed(timeout_s=DEADLINE_S))
    assert ids(found) == ["r2", "r0", "r1"]
    assert all(answer.is_success and answer.status == "finished" for answer in found)


def test_answers_arrive_while_jobs_still_run(client: Client) -> None:
    batch = client.submit(numbered(2))
    finish(client.redis, batch, "r0")
    stream = batch.as_completed(timeout_s=DEADLINE_S)
    assert next(stream).custom_id == "r0"
    finish(client.redis, batch, "r1")
    assert next(stream).custom_id == "r1"
    assert next(stream, None) is None


def test_a_job_with_two_events_is_answered_once(client: Client) -> None:
    batch = client.submit(numbered(2))
    finish(client.redis, batch, "r0", "r1", events=2)
    assert ids(batch.as_completed(timeout_s=DEADLINE_S)) == ["r0", "r1"]


def test_answers_are_fetched_in_one_round_trip_per_chunk(client: Client, redis_url: str) -> None:
    batch = client.submit(numbered(keys.CHUNK))
    finish(client.redis, batch, *(f"r{i}" for i in range(keys.CHUNK)))
    reads = client.redis.info("stats")["total_reads_processed"]
    assert len(list(batch.as_completed(timeout_s=DEADLINE_S))) == keys.CHUNK
    # A pipeline of 500 commands is a few reads of the server's 16 kB buffer, not 500.
    assert client.redis.info("stats")["total_reads_processed"] - reads < 30


def test_a_cancelled_job_that_its_worker_still_holds_is_waited_for(connection: Redis) -> None:
    # given a reader that looks for jobs without events at every empty read
    client = Client(connection, reconcile_s=0)
    batch = client.submit(numbered(1))
    Job.fetch(batch.job_id("r0"), client.redis, "json").cancel()
    client.redis.zadd(f"rq:executions:{batch.job_id('r0')}", {"e": 1})
    with pytest.raises(TimeoutError):
        list(batch.as_completed(timeout_s=0.1))


def test_a_finished_job_whose_result_is_gone_says_so(client: Client) -> None:
    batch = client.submit(numbered(1))
    finish(client.redis, batch, "r0")
    client.redis.delete(f"rq:results:{batch.job_id('r0')}")
    [answer] = batch.as_completed(timeout_s=DEADLINE_S)
    assert (answer.custom_id, error_code(answer), answer.is_success) == ("r0", "result_expired", False)


def test_waiting_ends_with_the_counts_or_in_time(client: Client) -> None:
    batch = client.submit(numbered(2))
    finish(client.redis, batch, "r0")
    with pytest.raises(TimeoutError, match=batch.id):
        batch.wait(timeout_s=0.05)
    finish(client.redis, batch, "r1")
    assert batch.wait(timeout_s=DEADLINE_S).num_finished == 2


def test_an_open_batch_is_not_done_until_it_is_sealed(client: Client) -> None:
    batch = client.submit(numbered(1), sealed=False)
    finish(client.redis, batch, "r0")
    stream = batch.as_completed(timeout_s=DEADLINE_S)
    assert next(stream).custom_id == "r0"
    assert batch.add(requests("r1")) == 1
    finish(client.redis, batch, "r1")
    batch.seal()
    assert ids(stream) == ["r1"]
    assert client.redis.zscore(keys.batch_jobs(batch.id), batch.job_id("r1")) == 1.0


def test_forgotten_jobs_leave_nothing_behind(client: Client) -> None:
    batch = client.submit(numbered(3))
    finish(client.redis, batch, "r0", "r1")
    collector = batch.collector()
    found = list(collector.fetch(collector.poll(1.0)))

    collector.forget(found)

    left = {key.decode() for key in cast("list[bytes]", client.redis.keys("*")) if b"job" in key or b"results" in key}
    assert left == {keys.batch_jobs(batch.id), Job.key_for(batch.job_id("r2"))}
    assert client.redis.xlen(keys.batch_events(batch.id)) == 0
    assert not collector.is_done()
    finish(client.redis, batch, "r2")
    assert ids(collector.fetch(collector.poll(1.0))) == ["r2"]
    assert collector.is_done()


def test_cancelling_ends_waiting_jobs_with_an_error_line_each(client: Client) -> None:
    batch, other = client.submit(numbered(3), "a"), client.submit(numbered(2), "a-b")
    finish(client.redis, batch, "r0")
    client.redis.hset(Job.key_for(batch.job_id("r1")), "status", "started")

    assert batch.cancel() == 1

    counts = batch.counts()
    assert (counts.cancelled, counts.num_cancelled, counts.num_finished) == (True, 1, 1)
    assert Queue("mlxq", connection=client.redis).job_ids == [other.job_id("r0"), other.job_id("r1")]
    job = Job.fetch(batch.job_id("r2"), client.redis, "json")
    assert job.is_canceled
    assert job.id in CanceledJobRegistry("mlxq", connection=client.redis)
    finish(client.redis, batch, "r1")
    last = {answer.custom_id: answer for answer in batch.as_completed(timeout_s=DEADLINE_S)}["r2"]
    assert (last.status, error_code(last), last.line["response"]) == ("cancelled", "batch_cancelled", None)


def test_cancelling_twice_counts_once(client: Client) -> None:
    batch = client.submit(numbered(3))
    assert [batch.cancel(), batch.cancel()] == [3, 0]
    assert batch.counts().num_cancelled == 3
    assert len(list(batch.as_completed(timeout_s=DEADLINE_S))) == 3


def test_cancelling_5000_jobs_takes_a_round_trip_or_two_per_chunk(client: Client) -> None:
    batch = client.submit(numbered(5000))
    before = client.redis.info("commandstats")

    assert batch.cancel() == 5000

    after = client.redis.info("commandstats")
    calls = {name: stats["calls"] - before.get(name, {"calls": 0})["calls"] for name, stats in after.items()}
    num_chunks = 5000 // keys.CHUNK
    assert sum(calls.get(f"cmdstat_eval{kind}", 0) for kind in ("", "sha")) <= 2 * (num_chunks + 1)
    assert calls["cmdstat_lrange"] == 1  # one pass over the queue, not one per job
    assert calls.get("cmdstat_lrem", 0) == 0


def test_one_waiting_job_can_be_cancelled(client: Client) -> None:
    batch = client.submit(numbered(2))
    assert batch.cancel_job(batch.job_id("r0"))
    assert not batch.cancel_job(batch.job_id("r0"))
    assert client.queue_length() == 1
    assert batch.counts().num_cancelled == 1


def test_cancelling_a_running_job_takes_it_from_its_worker(client: Client) -> None:
    batch = client.submit(numbered(1))
    job_id = batch.job_id("r0")
    client.redis.hset(Job.key_for(job_id), mapping={"status": "started", "worker_name": "w"})
    assert client.batch_of(job_id).cancel_job(job_id)
    assert client.redis.hget(Job.key_for(job_id), "status") == b"canceled"


def test_a_cancelled_batch_takes_no_more_requests(client: Client) -> None:
    client.submit(numbered(1), "b1").cancel()
    with pytest.raises(QueueError, match="cancelled"):
        client.submit(numbered(2), "b1")


def test_a_batch_stays_in_its_queue(client: Client) -> None:
    client.submit(numbered(1), "b1")
    with pytest.raises(QueueError, match="in queue 'mlxq'"):
        Client(client.redis, queue="other").submit(numbered(2), "b1")
    assert client.queue_length() == 1


def test_stops_are_counted_by_type_and_token(client: Client) -> None:
    batch = client.submit(numbered(1))
    client.redis.hset(keys.batch(batch.id), mapping={"stop:max_tokens:": 1, "stop:eos_token:0": 5})
    first, second = batch.counts().stops
    assert (first.type, first.token_id, first.count) == ("eos_token", 0, 5)
    assert (second.type, second.token_id, second.count) == ("max_tokens", None, 1)


def test_the_rate_is_that_of_the_newest_ended_jobs(client: Client) -> None:
    batch = client.submit(numbered(2))
    assert batch.rate() == 0.0
    finish(client.redis, batch, "r0", "r1")
    assert batch.rate() > 2.0


def test_what_is_cancelled_does_not_count_as_speed(client: Client) -> None:
    batch = client.submit(numbered(2))
    batch.cancel()
    assert batch.counts().num_cancelled == 2
    assert batch.rate() == 0.0


def test_batches_and_jobs_that_do_not_exist_are_named(client: Client) -> None:
    job_id = f"nope-{'0' * 20}"
    with pytest.raises(BatchNotFound, match="'nope'"):
        client.batch("nope")
    with pytest.raises(BatchNotFound, match=job_id):
        client.batch_of(job_id)
    with pytest.raises(BatchNotFound, match="'nope'"):
        client.open("nope").cancel()
    with pytest.raises(BatchNotFound, match="'nope'"):
        list(client.open("nope").as_completed(timeout_s=1))


def test_expired_batches_leave_the_list(client: Client) -> None:
    client.submit([], "b1")
    client.redis.delete(keys.batch("b1"))
    assert client.batch_ids() == []
    assert client.redis.zcard(keys.BATCHES) == 0


@pytest.mark.parametrize("batch_id", ["a b", "ä", "x" * 101, "a:b"])
def test_batch_ids_that_rq_cannot_carry_are_refused(client: Client, batch_id: str) -> None:
    with pytest.raises(ConfigError, match="batch id"):
        client.open(batch_id)


def test_an_unreachable_redis_is_named_without_its_password() -> None:
    client = Client("redis://me:secret@localhost:1/0")
    with pytest.raises(QueueUnavailable, match="localhost:1") as caught:
        client.submit(numbered(1))
    assert "secret" not in str(caught.value)


def test_a_redis_that_cannot_save_to_its_disk_is_one_to_wait_for(connection: Redis) -> None:
    reply = "Command # 1 (HSET a b c) of pipeline caused error: MISCONF Redis is configured to save RDB snapshots"
    with pytest.raises(QueueUnavailable, match="takes no more writes"), queue_errors(connection):
        raise ResponseError(reply)


def test_a_url_that_is_none_is_named_without_its_password() -> None:
    with pytest.raises(ConfigError, match="not a Redis URL") as caught:
        Client("http://me:secret@localhost")
    assert "secret" not in str(caught.value)


def test_workers_are_counted_while_they_are_alive(client: Client) -> None:
    redis: Any = client.redis
    redis.sadd("rq:workers:mlxq", "rq:worker:alive", "rq:worker:dead")
    redis.hset("rq:worker:alive", "birth", "now")
    assert client.num_workers() == 1
