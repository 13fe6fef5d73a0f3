"""Live jobs in Redis and in a worker: they go first, are leased and tried again like all others; bulk work goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis
from tests.queue.test_consumer import LEASE_S, Rig
from tests.support.fake_engine import FakeEngine, FakePreparer
from tests.support.queued_jobs import status, submit
from tests.support.waiting import wait_until

from mlxq import keys
from mlxq.queue.client import Client
from mlxq.queue.live.live_queue import LiveNews, LiveQueue
from mlxq.queue.overview import queue_state
from mlxq.requests.openai import text_request
from mlxq_worker.engine.api import RowId, RowPiece
from mlxq_worker.jobs.store import SUSPECT_STRIKES, JobStore
from mlxq_worker.messages import Admit, Ready, RowEnded, Streamed

START = 1_700_000_000.0
LIVE = keys.live(keys.DEFAULT_QUEUE)


@pytest.fixture
def live(connection: Redis) -> LiveQueue:
    return LiveQueue(connection, keys.DEFAULT_QUEUE)


@pytest.fixture
def rig(connection: Redis) -> Iterator[Rig]:
    """A worker of four rows, three of which may be live."""
    rig = Rig(connection)
    yield rig
    rig.close()


def store(connection: Redis, worker: str = "w1") -> JobStore:
    return JobStore(connection, worker, [keys.DEFAULT_QUEUE], lease_s=LEASE_S, lease_clock="caller")


def enqueue(live: LiveQueue, *job_ids: str, prompt: str = "hello", is_streamed: bool = False, **body: Any) -> None:
    for job_id in job_ids:
        line = text_request(prompt, custom_id=job_id, defaults=body)
        live.enqueue(job_id, line, is_streamed=is_streamed, wait_s=60)


def ids(jobs: list[Any]) -> list[str]:
    return [job.job_id for job in jobs]


def admitted(rig: Rig) -> list[Any]:
    return [spec for message in rig.sent() if isinstance(message, Admit) for spec in message.specs]


def read_to_the_end(live: LiveQueue, job_id: str) -> LiveNews:
    return live.read({job_id: "0-0"}, 0.001)


def test_live_jobs_are_claimed_first_and_beside_the_room_of_others(connection: Redis, live: LiveQueue) -> None:
    batch = submit(connection, "a", "b", "c")
    enqueue(live, "one", "two", "three")

    claim = store(connection).claim(2, START, live_limit=2)

    assert ids(claim.jobs) == ["one", "two", batch.job_id("r0"), batch.job_id("r1")]
    assert [job.is_live for job in claim.jobs] == [True, True, False, False]
    assert (claim.num_queued, claim.num_live) == (2, 1)


def test_a_live_job_goes_back_to_the_front_of_its_own_line(connection: Redis, live: LiveQueue) -> None:
    submit(connection, "a")
    enqueue(live, "one", "two")
    ours = store(connection)
    claim = ours.claim(0, START, live_limit=1)

    ours.release(claim.jobs, START)

    assert connection.lrange(LIVE, 0, -1) == [b"one", b"two"]
    assert connection.llen("rq:queue:mlxq") == 1


def test_a_live_job_of_a_worker_that_died_is_tried_again_as_a_live_one(connection: Redis, live: LiveQueue) -> None:
    enqueue(live, "one")
    store(connection, "dead").claim(1, START)

    other = store(connection)
    assert other.recover_expired(START + LEASE_S + 1).num_requeued == 1
    [job] = other.claim(1, START + LEASE_S + 10).jobs

    assert (job.job_id, job.is_live, job.strikes) == ("one", True, 1)


def test_a_live_suspect_runs_alone(connection: Redis, live: LiveQueue) -> None:
    enqueue(live, "suspect", "next")
    submit(connection, "a")
    connection.hset("rq:job:suspect", "mlxq_strikes", SUSPECT_STRIKES)
    ours = store(connection)

    assert ids(ours.claim(4, START, num_held=1).jobs) == []
    assert ids(ours.claim(4, START).jobs) == ["suspect"]


def test_a_worker_claims_as_many_live_jobs_as_it_can_run_at_once(connection: Redis, live: LiveQueue, rig: Rig) -> None:
    submit(connection, *["a"] * 40)
    rig.consumer.turn(START)
    rig.consumer.turn(START + 1)
    rig.sent()

    enqueue(live, *[f"live-{index}" for index in range(5)])
    rig.consumer.turn(START + 2)
    rig.consumer.turn(START + 3)

    specs = admitted(rig)
    assert [spec.is_live for spec in specs] == [True] * 3
    assert connection.lrange(LIVE, 0, -1) == [b"live-3", b"live-4"]


def test_bulk_work_is_claimed_while_live_jobs_fill_their_share(connection: Redis, live: LiveQueue, rig: Rig) -> None:
    enqueue(live, *[f"live-{index}" for index in range(50)])
    rig.consumer.turn(START)
    rig.consumer.turn(START + 1)
    submit(connection, *["a"] * 5)

    rig.consumer.turn(START + 2)
    rig.consumer.turn(START + 3)

    assert sum(not spec.is_live for spec in admitted(rig)) == 5


def test_the_next_live_job_is_claimed_at_once_when_one_has_ended(connection: Redis, live: LiveQueue, rig: Rig) -> None:
    enqueue(live, *[f"live-{index}" for index in range(4)])
    rig.consumer.turn(START)
    rig.consumer.turn(START)
    engine = FakeEngine()
    for spec in admitted(rig):
        engine.admit(spec)
    [first, *_] = [result for _ in range(3) for result in engine.step(START).finished]

    rig.consumer.receive(RowEnded(first), START)
    rig.consumer.turn(START)
    rig.consumer.turn(START)

    assert len(admitted(rig)) == 1
    assert connection.llen(LIVE) == 0


def test_an_answer_is_read_and_leaves_nothing_behind(connection: Redis, live: LiveQueue, rig: Rig) -> None:
    enqueue(live, "one", max_tokens=2)
    rig.consumer.turn(START)
    rig.consumer.turn(START)
    rig.decode(START)

    lines = live.read({"one": None}, 0.001).lines
    live.forget(lines)

    assert lines["one"]["response"]["body"]["choices"][0]["text"] == "xx"
    assert not [key for key in connection.keys("*") if b"one" in key]
    assert connection.zcard("rq:finished:mlxq") == 0


def test_an_answer_that_nobody_fetches_expires_soon(connection: Redis, live: LiveQueue, rig: Rig) -> None:
    enqueue(live, "one")
    rig.consumer.turn(START)
    rig.consumer.turn(START)
    rig.decode(START)

    assert 0 < connection.ttl("rq:results:one") <= keys.LIVE_TTL_S
    assert 0 < connection.ttl("rq:job:one") <= keys.LIVE_TTL_S


def test_a_request_that_nobody_claims_in_time_is_gone(connection: Redis, live: LiveQueue) -> None:
    enqueue(live, "one", "two")
    connection.delete("rq:job:one")  # as its time to live would

    assert 0 < connection.ttl("rq:job:two") <= 61
    assert ids(store(connection).claim(5, START).jobs) == ["two"]


def test_a_cancelled_request_that_waits_is_gone(connection: Redis, live: LiveQueue) -> None:
    enqueue(live, "one", "two")

    live.cancel(["one", "never-there"])

    assert connection.lrange(LIVE, 0, -1) == [b"two"]
    assert not connection.exists("rq:job:one")


def test_a_cancelled_request_that_runs_is_dropped_by_its_worker(connection: Redis, live: LiveQueue, rig: Rig) -> None:
    enqueue(live, "one")
    rig.consumer.turn(START)
    rig.consumer.turn(START)
    [spec] = admitted(rig)

    live.cancel(["one"])
    rig.consumer.turn(START + 2)

    assert [message.row_ids for message in rig.sent()] == [(spec.row_id,)]
    assert status(connection, "one") == "canceled"


def piece(spec: Any, start: int, text: str) -> RowPiece:
    return RowPiece(row_id=spec.row_id, part="content", start=start, text=text)


def test_what_an_answer_grows_by_is_written_together(connection: Redis, live: LiveQueue, rig: Rig) -> None:
    enqueue(live, "told", is_streamed=True)
    enqueue(live, "whole")
    rig.consumer.turn(START)
    rig.consumer.turn(START)
    told, whole = admitted(rig)
    assert (told.streaming is not None, whole.streaming) == (True, None)

    rig.consumer.receive(Streamed((piece(told, 0, "Hel"),)), START)
    gone = RowPiece(row_id=RowId("gone"), part="content", start=0, text="?")
    rig.consumer.receive(Streamed((piece(told, 3, "lo"), gone)), START)
    rig.consumer.turn(START + 1)
    rig.consumer.receive(Streamed((piece(told, 5, " you"),)), START + 1)
    rig.consumer.turn(START + 1.001)  # too early
    rig.consumer.turn(START + 2)

    growth = read_to_the_end(live, "told").growth["told"]
    assert [each.pieces for each in growth] == [[(0, "content", 0, "Hello")], [(0, "content", 5, " you")]]
    assert not connection.exists(keys.stream("whole"))
    assert 0 < connection.ttl(keys.stream("told")) <= keys.STREAM_TTL_S


def test_whoever_reads_too_slowly_or_not_at_all_takes_bounded_memory(connection: Redis) -> None:
    ours = store(connection)
    for index in range(3 * keys.STREAM_LENGTH):
        ours.stream({"one": b'[[0,"content",%d,"x"]]' % index}, {"one": "e"})

    assert keys.STREAM_LENGTH <= connection.xlen(keys.stream("one")) < 2 * keys.STREAM_LENGTH


def test_a_stream_that_cannot_be_written_costs_nobody_an_answer(connection: Redis, live: LiveQueue, rig: Rig) -> None:
    enqueue(live, "one", is_streamed=True)
    connection.set(keys.stream("one"), "a stranger's")
    rig.consumer.turn(START)
    rig.consumer.turn(START)
    [spec] = admitted(rig)
    rig.consumer.receive(Streamed((piece(spec, 0, "x"),)), START)
    rig.consumer.turn(START + 1)
    engine = FakeEngine()
    engine.admit(spec)
    for _ in range(3):
        for result in engine.step(START).finished:
            rig.consumer.receive(RowEnded(result), START)
    rig.consumer.turn(START + 2)

    assert set(read_to_the_end(live, "one").lines) == {"one"}


def test_one_broken_key_costs_no_other_request_anything(connection: Redis, live: LiveQueue, rig: Rig) -> None:
    enqueue(live, "one", "two", is_streamed=True)
    connection.set(keys.stream("one"), "a stranger's")
    connection.set("rq:results:one", "a stranger's")
    connection.xadd(keys.stream("two"), {"pieces": "no JSON"})
    rig.consumer.turn(START)
    rig.consumer.turn(START)
    rig.decode(START)

    assert "two" in live.read({"one": "0-0", "two": "0-0"}, 0.001).lines


def test_a_queue_counts_its_live_jobs(connection: Redis, live: LiveQueue) -> None:
    enqueue(live, "one", "two")
    batch = submit(connection, "a")

    assert Client(connection).queue_length() == 3
    assert queue_state(connection, keys.DEFAULT_QUEUE).waiting == 3
    assert batch.counts().total == 1


def test_a_live_list_of_another_type_makes_room(connection: Redis, live: LiveQueue) -> None:
    connection.set(LIVE, "a stranger's")

    enqueue(live, "one")

    assert ids(store(connection).claim(1, START).jobs) == ["one"]
    assert connection.get(f"mlxq:broken:{LIVE}") == b"a stranger's"


def test_the_models_are_those_of_workers_that_have_loaded_theirs(connection: Redis, live: LiveQueue, rig: Rig) -> None:
    rig.consumer.turn(time.time())
    assert live.models() == []

    rig.consumer.receive(Ready(FakePreparer(), 4, "fake"), START)
    wait_until(lambda: rig.consumer.turn(time.time()) is not None and live.models(), "the worker to say what it serves")

    assert live.models() == ["fake"]
