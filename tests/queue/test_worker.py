"""`BatchWorker` with both its threads, a real Redis and a fake engine: every job ends once, whatever happens."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import pytest
from redis import Redis
from redis import exceptions as redis_errors
from rq.command import send_shutdown_command, send_stop_job_command
from rq.suspension import resume, suspend
from rq.worker import BaseWorker, DequeueStrategy
from tests.support.fake_engine import FakeEngine, FakePreparer, FakeWorker, width_of
from tests.support.queued_jobs import answer, enqueue_plain, events, fetch, queue_of, status, submit
from tests.support.redis_at import redis_at
from tests.support.waiting import DEADLINE_S, wait_until

from mlxq.errors import ConfigError, ModelError
from mlxq_worker import exits
from mlxq_worker.backend import Backend
from mlxq_worker.config import EngineConfig, WorkerConfig
from mlxq_worker.jobs.consumer import Consumer
from mlxq_worker.jobs.store import Claim, JobStore

LONG = 1_000_000
"""More tokens than any test waits for."""


class Watched(FakeWorker):
    """Keeps its engines, so that tests can see what was decoded together. Full ones step while `may_step` is set."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.may_step = Event()
        self.may_step.set()
        self.engines: list[FakeEngine] = []
        self.error: BaseException | None = None

    def load_backend(self, config: WorkerConfig) -> Backend:
        width = width_of(config)
        return Backend(FakePreparer(), lambda: self._new_engine(width), width, "model fake")

    def _new_engine(self, width: int) -> FakeEngine:
        self.engines.append(FakeEngine(width, self.step_s, may_step=self.may_step))
        return self.engines[-1]

    @property
    def num_rows(self) -> int:
        return self.engines[-1].num_running if self.engines else 0


def a_worker(connection: Redis, width: int = 4, **config: Any) -> Watched:
    complete = WorkerConfig(model="fake", engine=EngineConfig(max_num_seqs=width), **config)
    return Watched(["mlxq"], connection=connection, serializer="json", config=complete)


@contextmanager
def working(worker: Watched) -> Iterator[Thread]:
    """The worker at work in a thread; stopped at once in the end if it still is."""

    def work() -> None:
        try:
            worker.work()
        except BaseException as error:  # noqa: BLE001 - for the test to look at
            traceback.print_exc()
            worker.error = error

    thread = Thread(target=work)
    thread.start()
    try:
        yield thread
    finally:
        for _ in range(2):
            worker.request_stop(15, None)
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def hears(worker: Watched) -> bool:
    """Whether it has subscribed to RQ's commands: nobody keeps those that come before."""
    [(_, num_subscribed)] = worker.connection.pubsub_numsub(worker.pubsub_channel_name)
    return bool(num_subscribed)


def lose_first_reply_of_claim(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    """The first claim that takes a job raises `error` or, without one, returns what a second try takes."""
    claim, replies = JobStore.claim, iter([True])

    def losing(self: JobStore, *args: Any, **options: Any) -> Claim:
        reply = claim(self, *args, **options)
        if not reply.jobs or not next(replies, False):
            return reply
        if error is not None:
            raise error
        return claim(self, *args, **options)

    monkeypatch.setattr(JobStore, "claim", losing)


# --- Decoding -------------------------------------------------------------------------------------------------


def test_two_hundred_jobs_end_once_each_in_a_batch_that_is_refilled(connection: Redis) -> None:
    batch = submit(connection, *("hello" for _ in range(200)))
    worker = a_worker(connection, width=8)

    worked = worker.work(burst=True)

    assert worked
    assert sorted(events(connection, batch).values()) == [1] * 200
    assert batch.counts().num_finished == 200
    assert max(worker.engines[0].widths) == 8
    assert len(worker.engines[0].widths) < 200 * 3 / 8 * 2, "most steps are full"


def test_the_time_that_a_worker_was_idle_is_not_charged_to_the_next_row(connection: Redis) -> None:
    worker = a_worker(connection)
    worker.idle_wait_s = DEADLINE_S

    with working(worker):
        first = enqueue_plain(connection)
        wait_until(lambda: status(connection, first.id) == "finished", "the first job")
        num_steps, idle_since = len(worker.engines[0].times), time.monotonic()
        second = enqueue_plain(connection)
        wait_until(lambda: status(connection, second.id) == "finished", "the second job")

    assert worker.engines[0].times[num_steps] >= idle_since


def test_bad_requests_fail_alone_each_with_its_own_error(connection: Redis) -> None:
    batch = submit(connection, "fine", "bad", "refuse", "fine")

    a_worker(connection).work(burst=True)

    answers = {found.custom_id: found.line for found in batch.as_completed()}
    codes = {name: line["response"]["body"].get("error", {}).get("code") for name, line in answers.items()}
    assert codes == {"r0": None, "r1": "bad_prompt", "r2": "kv_budget_exceeded", "r3": None}
    assert {answers[name]["response"]["status_code"] for name in ("r1", "r2")} == {400}


def test_a_request_that_does_not_parse_is_rejected_with_the_field_named(connection: Redis) -> None:
    line = {"custom_id": "x", "url": "/v1/completions", "body": {"prompt": "hi", "max_tokens": "many"}}
    job = queue_of(connection).enqueue("mlxq.jobs.generate", line)

    a_worker(connection).work(burst=True)

    error = answer(connection, job.id)["response"]["body"]["error"]
    assert (error["param"], status(connection, job.id)) == ("max_tokens", "failed")


def test_poison_jobs_fail_alone_and_run_nothing(connection: Redis) -> None:
    pickled, foreign, good = (enqueue_plain(connection) for _ in range(3))
    connection.hset(pickled.key, "data", b"cos\nabort\n(tR.")
    connection.hset(foreign.key, "data", b'["os.abort", null, [], {}]')

    a_worker(connection).work(burst=True)

    assert [status(connection, job.id) for job in (pickled, foreign, good)] == ["failed", "failed", "finished"]
    assert "os.abort" in answer(connection, foreign.id)["response"]["body"]["error"]["message"]


def test_a_preparer_with_a_bug_costs_one_job(
    connection: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = enqueue_plain(connection, "one"), enqueue_plain(connection, "two")
    prepare = FakePreparer.prepare

    def buggy(self: FakePreparer, request: Any, request_id: str) -> Any:
        if request.prompt == "one":
            raise KeyError("template")
        return prepare(self, request, request_id)

    monkeypatch.setattr(FakePreparer, "prepare", buggy)

    a_worker(connection).work(burst=True)

    assert [status(connection, job.id) for job in (first, second)] == ["failed", "finished"]
    assert answer(connection, first.id)["error"]["code"] == "internal_error"


def test_no_prompt_and_no_answer_is_logged(connection: Redis, caplog: pytest.LogCaptureFixture) -> None:
    submit(connection, "sesame", "sesame bad", "sesame refuse", "sesame boom")

    with caplog.at_level(logging.DEBUG, logger="rq.worker"):
        a_worker(connection).work(burst=True)

    assert "sesame" not in caplog.text
    assert "xxx" not in caplog.text


# --- A step that raises ---------------------------------------------------------------------------------------


def test_a_row_that_breaks_the_batch_fails_alone_in_the_end(connection: Redis) -> None:
    batch = submit(connection, "one", "two", "three boom", "four", "five", "six")
    worker = a_worker(connection)

    worker.work(burst=True)

    answers = {found.custom_id: found for found in batch.as_completed()}
    assert [name for name, found in answers.items() if found.status == "failed"] == ["r2"]
    assert answers["r2"].line["error"]["code"] == "engine_error"
    assert "boom goes the batch" in answers["r2"].line["error"]["message"]
    assert sorted(events(connection, batch).values()) == [1] * 6
    assert [engine.is_closed for engine in worker.engines] == [True] * len(worker.engines)


# --- Cancelling -----------------------------------------------------------------------------------------------


def test_cancelling_a_batch_drops_its_rows_and_keeps_their_text(connection: Redis) -> None:
    batch = submit(connection, *("slow" for _ in range(6)), max_tokens=LONG)
    worker = a_worker(connection)

    with working(worker):
        wait_until(lambda: worker.num_rows == 4, "a full batch")
        batch.cancel()
        wait_until(lambda: batch.counts().num_cancelled == 6, "all jobs cancelled")

    answers = {found.custom_id: found.line for found in batch.as_completed()}
    ran = answers["r0"]["response"]["body"]["choices"][0]
    assert (ran["finish_reason"], ran["stop_reason"], ran["stop_details"]["type"]) == ("length", "abort", "cancelled")
    assert ran["text"].startswith("x")
    assert sorted(events(connection, batch).values()) == [1] * 6
    assert {status(connection, batch.job_id(name)) for name in answers} == {"canceled"}


def test_jobs_of_a_cancelled_batch_end_without_being_run(connection: Redis) -> None:
    batch = submit(connection, "one", "two")
    connection.hset(f"mlxq:batch:{batch.id}", "cancelled", 1)
    worker = a_worker(connection)

    worker.work(burst=True)

    assert batch.counts().num_cancelled == 2
    assert worker.engines[0].widths == []
    assert answer(connection, batch.job_id("r0"))["error"]["code"] == "batch_cancelled"


def test_rqs_stop_command_ends_one_running_job(connection: Redis) -> None:
    stopped, other = (enqueue_plain(connection, "slow") for _ in range(2))
    for job in (stopped, other):
        line = {"url": "/v1/completions", "body": {"prompt": "slow", "max_tokens": LONG}}
        job.args = (line,)
        job.save()
    worker = a_worker(connection)

    with working(worker):
        wait_until(lambda: worker.num_rows == 2 and hears(worker), "both rows")
        send_stop_job_command(connection, stopped.id, serializer="json")
        wait_until(lambda: status(connection, stopped.id) == "stopped", "the job to stop")
        assert status(connection, other.id) == "started"


def test_rqs_cancel_ends_a_running_job_as_cancelled(connection: Redis) -> None:
    batch = submit(connection, "slow", max_tokens=LONG)
    job_id = batch.job_id("r0")
    worker = a_worker(connection)

    with working(worker):
        wait_until(lambda: worker.num_rows == 1, "the row")
        fetch(connection, job_id).cancel()
        wait_until(lambda: events(connection, batch), "the event")

    assert status(connection, job_id) == "canceled"
    assert answer(connection, job_id)["response"]["body"]["choices"][0]["stop_reason"] == "abort"


def test_a_row_whose_job_was_taken_away_is_dropped(connection: Redis) -> None:
    job = enqueue_plain(connection)
    job.args = ({"url": "/v1/completions", "body": {"prompt": "slow", "max_tokens": LONG}},)
    job.save()
    worker = a_worker(connection)

    with working(worker):
        wait_until(lambda: worker.num_rows == 1, "the row")
        fetch(connection, job.id).delete()
        wait_until(lambda: worker.num_rows == 0, "the row to go")

    assert connection.exists(job.key, f"rq:results:{job.id}") == 0


# --- Stopping -------------------------------------------------------------------------------------------------


def test_a_first_signal_lets_running_rows_end_and_gives_the_others_back(connection: Redis) -> None:
    batch = submit(connection, *("hello" for _ in range(12)), max_tokens=200)
    worker = a_worker(connection)
    worker.may_step.clear()

    with working(worker) as thread:
        wait_until(lambda: worker.num_rows == 4, "a full batch")
        worker.request_stop(15, None)
        worker.may_step.set()
        thread.join(DEADLINE_S)

    assert batch.counts().num_finished == 4
    assert queue_of(connection).job_ids == [batch.job_id(f"r{i}") for i in range(4, 12)]
    assert connection.zcard("rq:wip:mlxq") == 0


def test_a_second_signal_gives_everything_back_at_once_without_a_strike(connection: Redis) -> None:
    batch = submit(connection, *("slow" for _ in range(6)), max_tokens=LONG)
    worker = a_worker(connection)

    with working(worker) as thread:
        wait_until(lambda: worker.num_rows == 4, "a full batch")
        for _ in range(2):
            worker.request_stop(15, None)
        thread.join(DEADLINE_S)
        assert not thread.is_alive()

    assert queue_of(connection).job_ids == [batch.job_id(f"r{i}") for i in range(6)]
    assert connection.hget(f"rq:job:{batch.job_id('r0')}", "mlxq_strikes") is None


def test_rows_that_outlast_the_grace_go_back(connection: Redis) -> None:
    submit(connection, "slow", max_tokens=LONG)
    worker = a_worker(connection, grace_s=0.1)

    with working(worker) as thread:
        wait_until(lambda: worker.num_rows == 1, "the row")
        worker.request_stop(15, None)
        thread.join(DEADLINE_S)
        assert not thread.is_alive()

    assert queue_of(connection).count == 1


def test_rqs_shutdown_command_stops_an_idle_worker(connection: Redis) -> None:
    worker = a_worker(connection)

    with working(worker) as thread:
        wait_until(lambda: hears(worker), "the worker to hear")
        send_shutdown_command(connection, worker.name)
        thread.join(DEADLINE_S)
        assert not thread.is_alive()

    assert Watched.all(connection=connection) == [] or connection.hexists(worker.key, "death")


def test_a_suspended_worker_claims_nothing_until_it_is_resumed(connection: Redis) -> None:
    worker = a_worker(connection)
    suspend(connection)

    with working(worker):
        wait_until(lambda: connection.hget(worker.key, "state") == b"suspended", "the suspension to be seen")
        job = enqueue_plain(connection)
        assert status(connection, job.id) == "queued"
        resume(connection)
        wait_until(lambda: status(connection, job.id) == "finished", "the job")


@pytest.mark.parametrize("asked_by", ["configuration", "RQ"])
def test_after_enough_jobs_a_fresh_process_is_asked_for_and_nothing_is_left_in_limbo(
    connection: Redis,
    asked_by: str,
) -> None:
    batch = submit(connection, *("hello" for _ in range(40)))
    worker = a_worker(connection, max_jobs=10 if asked_by == "configuration" else None)

    worker.work(burst=True, max_jobs=10 if asked_by == "RQ" else None)

    num_ended = batch.counts().num_finished
    assert 10 <= num_ended < 40
    assert queue_of(connection).count == 40 - num_ended
    assert connection.zcard("rq:wip:mlxq") == 0
    assert worker.exit_code == exits.START_AGAIN


def test_a_worker_that_is_told_to_stop_while_it_recycles_just_stops(connection: Redis) -> None:
    submit(connection, *("hello" for _ in range(12)), max_tokens=200)
    worker = a_worker(connection, max_generated_tokens=4)
    worker.may_step.clear()

    with working(worker) as thread:
        wait_until(lambda: worker.num_rows == 4, "a full batch")
        worker.request_stop(15, None)
        worker.may_step.set()
        thread.join(DEADLINE_S)

    assert worker.exit_code == exits.DONE


# --- Trouble --------------------------------------------------------------------------------------------------


def test_results_survive_a_redis_that_is_away_for_a_while(
    connection: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = submit(connection, "one", "two", "three")
    end, failures = JobStore.end, [redis_errors.ConnectionError("gone"), redis_errors.TimeoutError("slow")]

    def flaky(self: JobStore, *args: Any) -> list[bool]:
        written = end(self, *args)
        if failures:
            raise failures.pop()  # the reply is lost, not the command
        return written

    monkeypatch.setattr(JobStore, "end", flaky)

    a_worker(connection).work(burst=True)

    assert failures == []
    assert batch.counts().num_finished == 3
    assert sorted(events(connection, batch).values()) == [1] * 3


def test_a_claim_whose_reply_an_outage_swallowed_is_given_back_when_redis_answers_again(
    connection: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lose_first_reply_of_claim(monkeypatch, redis_errors.ConnectionError("gone"))
    worker = a_worker(connection, maintenance_s=3600.0)
    job = enqueue_plain(connection)

    with working(worker):
        wait_until(lambda: status(connection, job.id) == "finished", "the job")


def test_a_claim_whose_reply_redis_py_lost_by_a_retry_is_given_back_before_a_burst_ends(
    connection: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lose_first_reply_of_claim(monkeypatch, None)
    job = enqueue_plain(connection)

    a_worker(connection, maintenance_s=3600.0).work(burst=True)

    assert status(connection, job.id) == "finished"


def test_connections_that_break_again_and_again_lose_and_double_nothing(
    connection: Redis,
    redis_url: str,
) -> None:
    batch = submit(connection, *("hello" for _ in range(300)))
    # What a claim took whose reply redis-py lost by a retry of its own waits for the next look: by default 10 s.
    worker = a_worker(connection, width=8, maintenance_s=1.0)
    worker.step_s = 0.005

    with working(worker), redis_at(redis_url) as saboteur:
        wait_until(lambda: worker.num_rows, "the worker to be there")  # one that can't even register gives up
        for _ in range(25):
            saboteur.client_kill_filter(_type="normal", skipme=True)
            time.sleep(0.03)
        wait_until(lambda: batch.counts().num_ended == 300, "all jobs")

    assert batch.counts().num_finished == 300
    assert sorted(events(connection, batch).values()) == [1] * 300


def test_a_registration_whose_reply_was_lost_is_one_all_the_same(
    connection: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register, failures = BaseWorker.register_birth, [redis_errors.ConnectionError("gone")]

    def flaky(self: BaseWorker) -> None:
        register(self)  # type: ignore[no-untyped-call]
        if failures:
            raise failures.pop()

    monkeypatch.setattr(BaseWorker, "register_birth", flaky)
    job = enqueue_plain(connection)

    a_worker(connection).work(burst=True)

    assert (failures, status(connection, job.id)) == ([], "finished")


def test_a_name_that_another_worker_has_is_no_registration(connection: Redis) -> None:
    first, second = (
        FakeWorker(["mlxq"], name="same", connection=connection, serializer="json", config=WorkerConfig(model="fake"))
        for _ in range(2)
    )
    first.register_birth()

    with pytest.raises(ValueError, match="active worker named 'same'"):
        second.work(burst=True)


def test_an_error_that_no_waiting_cures_ends_the_worker(
    connection: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(self: JobStore, *args: Any, **options: Any) -> None:
        raise redis_errors.ResponseError("NOPERM no such luck")

    monkeypatch.setattr(JobStore, "claim", broken)

    with pytest.raises(redis_errors.ResponseError, match="NOPERM"):
        a_worker(connection).work(burst=True)


def test_an_error_while_closing_ends_the_worker_with_that_error(
    connection: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(self: Consumer, now: float) -> None:
        raise ValueError("closing has a bug")

    monkeypatch.setattr(Consumer, "close", broken)

    with pytest.raises(ValueError, match="closing has a bug"):
        a_worker(connection).work(burst=True)


def test_a_model_that_does_not_load_leaves_no_worker_and_no_claimed_job(connection: Redis) -> None:
    job = enqueue_plain(connection)

    class Broken(FakeWorker):
        def load_backend(self, config: WorkerConfig) -> Backend:
            raise ModelError("no such model")

    worker = Broken(["mlxq"], connection=connection, serializer="json", config=WorkerConfig(model="fake"))

    with pytest.raises(ModelError, match="no such model"):
        worker.work(burst=True)
    assert status(connection, job.id) == "queued"
    assert connection.smembers("rq:workers") == set()


def test_a_worker_entry_that_was_flushed_is_written_again(connection: Redis) -> None:
    worker = a_worker(connection)

    with working(worker):
        wait_until(lambda: connection.exists(worker.key), "the worker to register")
        connection.flushall()
        wait_until(lambda: connection.hget(worker.key, "birth"), "the worker to register again")

        assert [found.name for found in Watched.all(connection=connection)] == [worker.name]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_idle_time": 5}, "--max-idle-time"),
        ({"dequeue_strategy": DequeueStrategy.RANDOM}, "--dequeue-strategy"),
    ],
)
def test_options_of_rq_that_mean_nothing_here_are_refused(
    connection: Redis,
    options: dict[str, Any],
    name: str,
) -> None:
    with pytest.raises(ConfigError, match=name):
        a_worker(connection).work(burst=True, **options)


def test_another_serializer_than_json_is_refused(connection: Redis) -> None:
    worker = FakeWorker(["mlxq"], connection=connection, config=WorkerConfig(model="fake"))

    with pytest.raises(ConfigError, match="--serializer json"):
        worker.work(burst=True)
