"""A job with several rows, between a real Redis and a fake engine: one job, one end, whatever its rows do.

Consumer and decode loop take turns by hand, so that a test can stop at any moment of a job's life.
"""

from __future__ import annotations

from collections.abc import Iterator
from queue import Empty
from typing import Any

import pytest
from redis import Redis
from tests.support.fake_engine import FakeEngine, FakePreparer, FakeWorker
from tests.support.queued_jobs import answer, enqueue_plain, fetch, queue_of, status, submit

from mlxq.results.read_back import is_cut, is_success
from mlxq_worker.config import EngineConfig, WorkerConfig
from mlxq_worker.decoding.loop import DecodeLoop
from mlxq_worker.jobs.consumer import Consumer
from mlxq_worker.jobs.leases import BEAT_S
from mlxq_worker.jobs.presence import Presence
from mlxq_worker.jobs.store import JobStore
from mlxq_worker.messages import Channel, Ready
from mlxq_worker.step_watch import StepWatch

START = 1_700_000_000.0


class Works:
    """A consumer and a decode loop over an engine that is four rows wide; eight rows are held at most."""

    def __init__(self, connection: Redis) -> None:
        config = WorkerConfig(model="fake", claim_ahead=2, engine=EngineConfig(max_num_seqs=4))
        worker = FakeWorker(["mlxq"], connection=connection, serializer="json", config=config)
        worker.register_birth()
        self._channel = Channel.open()
        self._presence = Presence(worker)
        self._now = START
        self.engine = FakeEngine(4)
        self.loop = DecodeLoop(self._new_engine, self._channel, 4, StepWatch(1.0))
        store = JobStore(connection, worker.name, config.queues, lease_clock="caller")
        self.consumer = Consumer(store, self._presence, self._channel, config)
        self.consumer.receive(Ready(FakePreparer(), 4), START)

    def _new_engine(self) -> FakeEngine:
        self.engine = FakeEngine(4)
        return self.engine

    def turns(self, count: int, *, seconds: float = 0.001) -> None:
        """Consumer and loop, each once, `count` times; both see the time go by."""
        for _ in range(count):
            self._now += seconds
            self.consumer.turn(self._now)
            self.loop.receive(0.0)
            self.loop.turn(self._now)
            self._deliver()
        self.consumer.turn(self._now)

    def _deliver(self) -> None:
        while True:
            try:
                self.consumer.receive(self._channel.to_io.get_nowait(), self._now)
            except Empty:
                return

    def close(self) -> None:
        self._presence.close()


@pytest.fixture
def works(connection: Redis) -> Iterator[Works]:
    works = Works(connection)
    yield works
    works.close()


def choices(line: dict[str, Any]) -> list[tuple[int, str, str]]:
    return [(each["index"], each["text"], each["finish_reason"]) for each in line["response"]["body"]["choices"]]


def test_a_job_is_answered_once_all_its_rows_have_ended(connection: Redis, works: Works) -> None:
    job = enqueue_plain(connection, "rows=3 uneven")

    works.turns(3)
    in_the_middle = status(connection, job.id)
    works.turns(3)

    assert in_the_middle == "started", "the first row has ended, the others have not"
    line = answer(connection, job.id)
    assert choices(line) == [(0, "x", "length"), (1, "xxx", "length"), (2, "xxx", "length")]
    assert line["response"]["body"]["usage"] == {
        "prompt_tokens": len("rows=3 uneven"),
        "completion_tokens": 7,
        "total_tokens": len("rows=3 uneven") + 7,
    }
    assert works.consumer.outbox.num_late == 0


def test_the_rows_of_a_job_enter_the_engine_together_even_if_they_are_more_than_it_is_wide(
    connection: Redis,
    works: Works,
) -> None:
    wide, neighbour = enqueue_plain(connection, "rows=11"), enqueue_plain(connection, "beside it")

    works.turns(2)
    entered = len(works.engine.rows)
    works.turns(16)

    assert entered == 11
    assert len(choices(answer(connection, wide.id))) == 11
    assert status(connection, neighbour.id) == "finished"


def test_cancelling_a_job_ends_all_its_rows_and_keeps_their_texts(connection: Redis, works: Works) -> None:
    batch = submit(connection, "rows=3 uneven", max_tokens=1000)
    works.turns(5)

    batch.cancel()
    works.turns(3, seconds=BEAT_S)

    line = answer(connection, batch.job_id("r0"))
    texts = choices(line)
    assert [finish for _, _, finish in texts] == ["length"] * 3, "the words of OpenAI's types"
    assert [each["stop_reason"] for each in line["response"]["body"]["choices"]] == [None, "abort", "abort"]
    assert texts[0][1] == "x"
    assert all(len(text) >= 4 for _, text, _ in texts[1:])
    assert not works.engine.rows


def test_a_job_cancelled_before_its_rows_run_ends_whole(connection: Redis, works: Works) -> None:
    enqueue_plain(connection, "rows=4", job_id="ahead")
    batch = submit(connection, "rows=3", max_tokens=1000)
    works.turns(2)

    batch.cancel()
    works.turns(4, seconds=BEAT_S)

    assert answer(connection, batch.job_id("r0"))["error"]["code"] == "batch_cancelled"
    assert status(connection, "ahead") == "finished"


def test_one_dead_row_of_several_leaves_the_others_their_answers_and_says_what_killed_it(
    connection: Redis, works: Works
) -> None:
    job = enqueue_plain(connection, "rows=3 twisted")

    works.turns(5)

    line = answer(connection, job.id)
    first, dead, third = line["response"]["body"]["choices"]
    assert [(each["text"], each["stop_details"]["type"]) for each in (first, third)] == [("xxx", "max_tokens")] * 2
    assert (dead["stop_details"]["type"], dead["stop_reason"]) == ("error", "error")
    assert dead["error"]["code"] == "nan_logits"
    assert "NaN" in dead["error"]["message"]
    assert "error" not in first | third
    assert status(connection, job.id) == "finished"
    assert (is_success(line), is_cut(line)) == (True, True)
    assert works.consumer.outbox.num_late == 0


@pytest.mark.parametrize("prompt", ["nan", "rows=3 nan"])
def test_a_job_fails_whose_rows_have_all_died_and_no_other(connection: Redis, works: Works, prompt: str) -> None:
    bad = enqueue_plain(connection, prompt)
    good = enqueue_plain(connection, "beside it")

    works.turns(5)

    line = answer(connection, bad.id)
    assert (line["response"], line["error"]["code"]) == (None, "nan_logits")
    assert (status(connection, bad.id), status(connection, good.id)) == ("failed", "finished")
    assert not works.engine.rows


@pytest.mark.parametrize("how", ["misfit", "refuse"], ids=["the second row", "every row"])
def test_a_row_that_is_refused_refuses_its_job(connection: Redis, works: Works, how: str) -> None:
    bad = enqueue_plain(connection, f"rows=3 {how}")
    good = enqueue_plain(connection, "beside it")

    works.turns(5)

    error = answer(connection, bad.id)["response"]["body"]["error"]
    assert (error["param"], error["code"]) == ("prompt", "kv_budget_exceeded")
    assert (status(connection, bad.id), status(connection, good.id)) == ("failed", "finished")
    assert not works.engine.rows


def test_a_job_one_of_whose_rows_is_refused_while_the_others_wait_is_refused(connection: Redis, works: Works) -> None:
    enqueue_plain(connection, "rows=4")
    bad = enqueue_plain(connection, "rows=3 misfit")

    works.turns(3)

    assert answer(connection, bad.id)["response"]["body"]["error"]["code"] == "kv_budget_exceeded"
    assert status(connection, bad.id) == "failed"


def test_a_step_that_raises_costs_a_job_one_strike_however_many_rows_it_has(
    connection: Redis,
    works: Works,
) -> None:
    job = enqueue_plain(connection, "rows=3 boom")

    works.turns(2)

    assert connection.hget(f"rq:job:{job.id}", "mlxq_strikes") == b"1"


def test_stopping_gives_a_job_back_whole_while_some_of_its_rows_have_ended(
    connection: Redis,
    works: Works,
) -> None:
    job = enqueue_plain(connection, "rows=3 uneven")
    works.turns(2)

    works.consumer.close(START + 1)

    assert status(connection, job.id) == "queued"
    assert fetch(connection, job.id).latest_result() is None


def test_what_is_held_is_counted_in_rows_and_the_rest_goes_back_to_the_queue(
    connection: Redis,
    works: Works,
) -> None:
    jobs = [enqueue_plain(connection, "rows=6") for _ in range(8)]

    works.turns(2)
    held = [status(connection, job.id) for job in jobs]
    works.turns(60)

    assert held == ["started"] * 2 + ["queued"] * 6, "two jobs have twelve rows, and eight are enough"
    assert [status(connection, job.id) for job in jobs] == ["finished"] * 8
    assert queue_of(connection).count == 0
