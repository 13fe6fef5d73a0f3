"""`JobStore` against a real Redis and an embedded one: who owns a job, and what is written about it."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from threading import Thread

import fakeredis
import pytest
from redis import Redis
from rq.callbacks import Callback
from rq.executions import Execution
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.suspension import resume, suspend
from tests.support.queued_jobs import answer, enqueue_plain, events, fetch, queue_of, status, submit
from tests.support.redis_at import redis_at
from tests.support.redis_fixture import MortalRedis
from tests.support.waiting import DEADLINE_S

from mlxq import keys
from mlxq.contract import Choice, Result, RunInfo, StopDetails, Usage
from mlxq.errors import RequestError
from mlxq_worker.jobs import endings
from mlxq_worker.jobs.claimed import MAX_DATA_BYTES, ClaimedJob
from mlxq_worker.jobs.endings import Ending
from mlxq_worker.jobs.store import FIRST_DELAY_S, MAX_DELAY_S, MAX_STRIKES, JobStore

LEASE_S = 90.0


@pytest.fixture(params=["real", "embedded"])
def connection(request: pytest.FixtureRequest) -> Iterator[Redis]:
    if request.param == "embedded":
        with fakeredis.FakeRedis() as fake:
            yield fake
    else:
        with redis_at(request.getfixturevalue("redis_url")) as real:
            yield real


def store(connection: Redis, worker: str = "w1") -> JobStore:
    return JobStore(connection, worker, [keys.DEFAULT_QUEUE], lease_s=LEASE_S, lease_clock="caller")


def finished(job: ClaimedJob, text: str = "hi") -> Ending:
    details = StopDetails(type="eos_token", token_id=7, token="</s>", token_index=1)
    choice = Choice(index=0, text=text, finish_reason="stop", stop_reason=None, stop_details=details)
    result = Result(
        custom_id=job.custom_id,
        request_id=job.job_id,
        endpoint="/v1/completions",
        model="fake",
        created=1,
        choices=(choice,),
        usage=Usage(prompt_tokens=5, completion_tokens=2),
        run=RunInfo(eos=(), seed=0, content_hash="", queue_s=0.0, prefill_s=0.0, decode_s=0.0),
    )
    return endings.answered(job, result, None)


def now() -> float:
    return time.time()


def later() -> float:
    """When every lease has run out and every delay is over."""
    return time.time() + LEASE_S + MAX_DELAY_S + 1


# --- Claiming -------------------------------------------------------------------------------------------------


def test_a_claim_takes_jobs_in_order_and_registers_them_as_rq_does(connection: Redis) -> None:
    batch = submit(connection, "a", "b", "c")

    claim = store(connection).claim(2, now())

    assert [job.custom_id for job in claim.jobs] == ["r0", "r1"]
    assert claim.num_queued == 1
    job = fetch(connection, claim.jobs[0].job_id)
    assert (job.get_status(), job.worker_name) == ("started", "w1")
    assert job.started_at is not None
    assert job.id in StartedJobRegistry(queue=queue_of(connection))
    [execution] = job.get_executions()
    assert (execution.id, execution.worker_name) == (claim.jobs[0].execution_id, "w1")
    assert claim.jobs[0].batch == batch.id
    assert 0 < connection.ttl(execution.key) <= LEASE_S


def test_two_workers_that_claim_at_once_share_the_queue_and_no_job(redis_url: str) -> None:
    with redis_at(redis_url) as shared:
        submit(shared, *map(str, range(200)))
    taken: dict[str, list[str]] = {"w1": [], "w2": []}

    def work(name: str) -> None:
        with redis_at(redis_url) as own:
            while jobs := store(own, name).claim(7, now()).jobs:
                taken[name] += [job.job_id for job in jobs]

    threads = [Thread(target=work, args=(name,)) for name in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)

    everything = taken["w1"] + taken["w2"]
    assert len(everything) == len(set(everything)) == 200


def test_ids_of_jobs_that_are_gone_or_not_queued_any_more_are_skipped(connection: Redis) -> None:
    gone, cancelled, good = (enqueue_plain(connection) for _ in range(3))
    connection.delete(gone.key)
    connection.hset(cancelled.key, "status", "canceled")

    claim = store(connection).claim(10, now())

    assert [job.job_id for job in claim.jobs] == [good.id]
    assert claim.num_queued == 0


def test_a_claim_from_several_queues_follows_their_order(connection: Redis) -> None:
    low = enqueue_plain(connection)
    connection.rename("rq:queue:mlxq", "rq:queue:low")
    high = enqueue_plain(connection)

    claim = JobStore(connection, "w1", [keys.DEFAULT_QUEUE, "low"]).claim(5, now())

    assert [(job.queue, job.job_id) for job in claim.jobs] == [("mlxq", high.id), ("low", low.id)]


def test_nothing_is_claimed_while_rq_is_suspended(connection: Redis) -> None:
    job = enqueue_plain(connection)
    suspend(connection)

    claim = store(connection).claim(5, now())

    assert (claim.jobs, claim.num_queued, claim.suspended) == ([], 1, True)
    resume(connection)
    assert [claimed.job_id for claimed in store(connection).claim(5, now()).jobs] == [job.id]


def test_a_suspect_is_claimed_alone_and_only_by_a_worker_that_holds_nothing(connection: Redis) -> None:
    first, suspect, last = (enqueue_plain(connection) for _ in range(3))
    connection.hset(suspect.key, "mlxq_strikes", 2)
    worker = store(connection)

    before = worker.claim(5, now())
    refused = worker.claim(5, now(), num_held=1)
    alone = worker.claim(5, now(), num_held=0)

    assert [job.job_id for job in before.jobs] == [first.id]
    assert (refused.jobs, refused.num_queued) == ([], 2)
    assert [(job.job_id, job.strikes) for job in alone.jobs] == [(suspect.id, 2)]
    assert queue_of(connection).job_ids == [last.id]


def test_a_job_with_foreign_meta_is_claimed_without_a_batch(connection: Redis) -> None:
    job = enqueue_plain(connection)
    connection.hset(job.key, "meta", b"\x80\x04}.")

    [claimed] = store(connection).claim(1, now()).jobs

    assert (claimed.batch, claimed.custom_id) == (None, job.id)


GARBAGE = (b"", b"yesterday", b"\xff\xfe", b"-1.5", b"9" * 30, b"[" * 10_000)
READ_FIELDS = ("meta", "enqueued_at", "mlxq_strikes", "mlxq_outcome", "worker_name", "started_at", "ttl", "result_ttl")


@pytest.mark.parametrize("field", READ_FIELDS)
@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda value: repr(value[:20]))
def test_garbage_in_a_job_costs_no_worker_anything(connection: Redis, field: str, garbage: bytes) -> None:
    job_id = submit(connection, "a").job_id("r0")
    worker = store(connection)
    connection.hset(f"rq:job:{job_id}", field, garbage)

    worker.release(worker.claim(1, now()).jobs, now(), strikes=1)
    connection.hset(f"rq:job:{job_id}", field, garbage)
    worker.claim(1, later())
    connection.hset(f"rq:job:{job_id}", field, garbage)
    worker.recover_expired(later() + LEASE_S + 1)
    written = worker.end(
        [finished(claimed) for claimed in worker.claim(1, later() + 2 * LEASE_S + MAX_DELAY_S).jobs], now()
    )

    assert written == [True]
    assert connection.hget(f"rq:job:{job_id}", "status") == b"finished"


def test_what_can_not_be_read_of_a_job_is_taken_for_unset(connection: Redis) -> None:
    job = enqueue_plain(connection)
    connection.hset(job.key, mapping={"meta": b"{", "enqueued_at": b"yesterday", "mlxq_strikes": b"many"})
    start = now()

    [claimed] = store(connection).claim(1, start).jobs

    assert (claimed.custom_id, claimed.enqueued_at, claimed.strikes) == (job.id, start, 0)


def test_a_job_whose_id_is_not_text_ends_no_worker(connection: Redis) -> None:
    connection.hset(b"rq:job:\xff", mapping={"status": "queued", "data": b"x"})
    connection.rpush("rq:queue:mlxq", b"\xff")
    worker = store(connection)

    [claimed] = worker.claim(1, now()).jobs

    assert worker.end([finished(claimed)], now()) == [False]
    assert worker.release_strays([claimed], now()) == 0
    assert worker.recover_expired(now() + LEASE_S + 1).num_requeued == 1


KEYS_OF_A_JOB = ("rq:job:{}", "rq:results:{}", "rq:executions:{}", "rq:job:{}:dependents")


@pytest.mark.parametrize("key", KEYS_OF_A_JOB)
@pytest.mark.parametrize("at", ["queued", "claimed"])
def test_a_key_of_the_wrong_type_under_a_jobs_id_costs_no_worker_anything(connection: Redis, key: str, at: str) -> None:
    batch = submit(connection, "a", "b")
    worker, bad_key = store(connection), key.format(batch.job_id("r0"))
    if at == "queued":
        connection.delete(bad_key)
        connection.set(bad_key, "wrong")
    claimed = worker.claim(2, now()).jobs
    connection.delete(bad_key)
    connection.set(bad_key, "wrong")

    worker.beat(claimed, now() + LEASE_S / 2)
    worker.recover_expired(now() + 2 * LEASE_S)
    worker.release(worker.claim(2, later() + 2 * LEASE_S + MAX_DELAY_S).jobs, now())
    written = worker.end([finished(job) for job in worker.claim(2, now()).jobs], now())

    assert all(written)
    assert status(connection, batch.job_id("r1")) == "finished"
    assert connection.zcard("rq:wip:mlxq") == 0


@pytest.mark.parametrize("field", ["finished", "prompt_tokens"])
def test_garbage_in_the_counts_of_a_batch_costs_no_worker_anything(connection: Redis, field: str) -> None:
    batch = submit(connection, "a")
    connection.hset(keys.batch(batch.id), field, "many")
    worker = store(connection)

    assert worker.end([finished(job) for job in worker.claim(1, now()).jobs], now()) == [True]
    assert connection.hget(keys.batch(batch.id), field) in (b"1", b"5")


def test_a_job_without_data_or_status_is_claimed_so_that_somebody_ends_it(connection: Redis) -> None:
    jobs = [enqueue_plain(connection) for _ in range(2)]
    connection.hdel(jobs[0].key, "data")
    connection.hdel(jobs[1].key, "status")

    claimed = store(connection).claim(5, now()).jobs

    assert [job.job_id for job in claimed] == [job.id for job in jobs]
    with pytest.raises(RequestError, match="not JSON"):
        claimed[0].line()


def test_what_is_no_execution_among_the_leases_is_thrown_out(connection: Redis) -> None:
    enqueue_plain(connection)
    worker = store(connection)
    worker.claim(1, now())
    connection.zadd("rq:wip:mlxq", {"no colon": 1.0, ":": 2.0, "": 3.0})

    assert worker.recover_expired(now() + LEASE_S + 1).num_requeued == 1
    assert connection.zcard("rq:wip:mlxq") == 0


@pytest.mark.parametrize("hit", ["data", "meta", "created_at"])
def test_dependents_that_can_not_be_read_go_on_waiting_and_end_no_worker(connection: Redis, hit: str) -> None:
    parent = enqueue_plain(connection)
    child = enqueue_plain(connection, depends_on=parent)
    connection.hset(child.key, hit, b"\x80\x04\xff")
    worker = store(connection)

    written = worker.end([finished(job) for job in worker.claim(5, now()).jobs], now())

    assert written == [True]
    assert status(connection, parent.id) == "finished"


def test_scripts_that_redis_has_forgotten_are_sent_again(connection: Redis) -> None:
    ids = [enqueue_plain(connection).id for _ in range(3)]
    worker = store(connection)

    connection.script_flush()
    claimed = worker.claim(3, now()).jobs
    connection.script_flush()
    worker.beat(claimed, now())
    connection.script_flush()
    written = worker.end([finished(job) for job in claimed[:1]], now())
    connection.script_flush()
    worker.release(claimed[1:], now())

    assert written == [True]
    assert queue_of(connection).job_ids == ids[1:]


def test_a_small_payload_that_unpacks_to_hundreds_of_megabytes_is_refused_unpacked(connection: Redis) -> None:
    job = enqueue_plain(connection)
    connection.hset(job.key, "data", zlib.compress(b" " * (MAX_DATA_BYTES + 2)))

    [claimed] = store(connection).claim(1, now()).jobs

    with pytest.raises(RequestError, match="longer than 64 MiB"):
        claimed.line()


# --- What a job may carry -------------------------------------------------------------------------------------


def test_the_line_of_a_job_is_its_argument(connection: Redis) -> None:
    enqueue_plain(connection, "hello")

    [claimed] = store(connection).claim(1, now()).jobs

    assert claimed.line()["body"] == {"prompt": "hello"}


@pytest.mark.parametrize(
    ("function", "arguments", "code"),
    [
        ("os.system", ["true"], "function_not_allowed"),
        (keys.FUNCTION_NAME, [], "invalid_job"),
        (keys.FUNCTION_NAME, ["a line"], "invalid_job"),
    ],
)
def test_a_job_that_is_none_of_ours_is_refused(
    connection: Redis, function: str, arguments: list[str], code: str
) -> None:
    queue_of(connection).enqueue(function, *arguments)

    [claimed] = store(connection).claim(1, now()).jobs

    with pytest.raises(RequestError) as caught:
        claimed.line()
    assert caught.value.code == code


def test_a_pickled_job_is_refused_and_not_unpickled(connection: Redis) -> None:
    job = enqueue_plain(connection)
    connection.hset(job.key, "data", b"cos\nabort\n(tR.")

    [claimed] = store(connection).claim(1, now()).jobs

    with pytest.raises(RequestError, match="not JSON"):
        claimed.line()


def test_a_job_with_callbacks_is_refused_by_name(connection: Redis) -> None:
    enqueue_plain(connection, on_failure=Callback("os.abort"))

    [claimed] = store(connection).claim(1, now()).jobs

    with pytest.raises(RequestError, match="a failure callback"):
        claimed.line()


# --- Ending ---------------------------------------------------------------------------------------------------


def test_a_finished_job_reads_like_one_of_rqs_own(connection: Redis) -> None:
    batch = submit(connection, "a")
    worker = store(connection)
    [claimed] = worker.claim(1, now()).jobs

    written = worker.end([finished(claimed, "grüß dich")], now())

    job = fetch(connection, claimed.job_id)
    line = job.return_value()
    assert written == [True]
    assert job.get_status() == "finished"
    assert line is not None
    assert line["custom_id"] == "r0"
    assert line["response"]["body"]["choices"][0]["text"] == "grüß dich"
    assert job.ended_at is not None
    assert job.id in FinishedJobRegistry(queue=queue_of(connection))
    assert job.get_executions() == []
    assert connection.zcard("rq:wip:mlxq") == 0
    assert connection.scard("rq:worker:w1:executions") == 0
    assert keys.RESULT_TTL_S - DEADLINE_S < connection.ttl(job.key) <= keys.RESULT_TTL_S
    assert keys.RESULT_TTL_S - DEADLINE_S < connection.ttl(f"rq:results:{job.id}") <= keys.RESULT_TTL_S
    assert events(connection, batch) == {f"{job.id}:finished": 1}
    counts = batch.counts()
    assert (counts.num_finished, counts.prompt_tokens, counts.completion_tokens) == (1, 5, 2)
    assert [(stop.type, stop.token_id, stop.count) for stop in counts.stops] == [("eos_token", 7, 1)]


def test_a_failed_job_has_its_line_beside_rqs_error_text(connection: Redis) -> None:
    batch = submit(connection, "a")
    worker = store(connection)
    [claimed] = worker.claim(1, now()).jobs

    worker.end([endings.rejected(claimed, RequestError("too long", param="prompt", code="too_long"))], now())

    job = fetch(connection, claimed.job_id)
    result = job.latest_result()
    assert result is not None
    assert job.get_status() == "failed"
    assert result.exc_string == "RequestError: too long (too_long)"
    assert answer(connection, job.id)["response"]["status_code"] == 400
    assert job.id in FailedJobRegistry(queue=queue_of(connection))
    assert keys.FAILURE_TTL_S - DEADLINE_S < connection.ttl(job.key) <= keys.FAILURE_TTL_S
    assert batch.counts().num_failed == 1


def test_a_pickled_job_fails_without_an_answer_that_its_producer_could_not_read(connection: Redis) -> None:
    enqueue_plain(connection)
    worker = store(connection)
    [claimed] = worker.claim(1, now()).jobs

    worker.end([endings.rejected(claimed, RequestError("not JSON", code="not_json"))], now())

    result = fetch(connection, claimed.job_id).latest_result()
    assert result is not None
    assert (result.return_value, result.exc_string) == (None, "RequestError: not JSON (not_json)")


def test_a_job_outside_any_batch_leaves_no_counts(connection: Redis) -> None:
    job = enqueue_plain(connection, meta={"batch": "never-made"})
    worker = store(connection)

    worker.end([finished(claimed) for claimed in worker.claim(1, now()).jobs], now())

    assert status(connection, job.id) == "finished"
    assert connection.keys("mlxq:*") == []


def test_a_job_keeps_its_own_result_ttl_and_zero_keeps_nothing(connection: Redis) -> None:
    short, none, forever = (enqueue_plain(connection, result_ttl=ttl) for ttl in (60, 0, -1))
    worker = store(connection)

    worker.end([finished(claimed) for claimed in worker.claim(3, now()).jobs], now())

    assert 0 < connection.ttl(short.key) <= 60
    assert connection.exists(none.key, f"rq:results:{none.id}") == 0
    assert connection.ttl(forever.key) == -1


def test_the_first_finish_wins_and_the_second_writes_nothing(connection: Redis) -> None:
    batch = submit(connection, "a")
    slow, quick = store(connection, "slow"), store(connection, "quick")
    [old] = slow.claim(1, now()).jobs
    quick.recover_expired(now() + LEASE_S + 1)
    [new] = quick.claim(1, later()).jobs

    late_before = slow.end([finished(old, "late")], now())
    first = quick.end([finished(new, "first")], now())
    late_after = slow.end([finished(old, "late")], now())

    assert (late_before, first, late_after) == ([False], [True], [False])
    assert answer(connection, old.job_id)["response"]["body"]["choices"][0]["text"] == "first"
    assert batch.counts().num_finished == 1
    assert sum(events(connection, batch).values()) == 1


def test_a_finish_that_is_sent_again_because_its_reply_was_lost_counts_once(connection: Redis) -> None:
    batch = submit(connection, "a")
    worker = store(connection)
    [claimed] = worker.claim(1, now()).jobs

    replies = [worker.end([finished(claimed)], now()) for _ in range(2)]

    assert replies == [[True], [True]]
    assert batch.counts().num_finished == 1
    assert connection.xlen(f"rq:results:{claimed.job_id}") == 1


def test_who_adds_to_a_batch_is_not_disturbed_by_jobs_of_it_that_end(connection: Redis) -> None:
    batch = submit(connection, "a")
    worker = store(connection)
    jobs = worker.claim(1, now()).jobs

    with connection.pipeline() as adding:
        adding.watch(keys.batch_jobs(batch.id))
        worker.end([finished(job) for job in jobs], now())
        adding.multi()
        adding.zadd(keys.batch_jobs(batch.id), {"another": 1})

        assert adding.execute() == [1]  # a WatchError would have it start over
    assert batch.counts().num_finished == 1


def test_every_end_keeps_its_batch_for_another_month(connection: Redis) -> None:
    batch = submit(connection, "a")
    of_batch = [keys.batch(batch.id), keys.batch_jobs(batch.id), keys.batch_events(batch.id)]
    for key in of_batch:
        connection.expire(key, keys.BATCH_TTL_S // 2)
    worker = store(connection)

    worker.end([finished(job) for job in worker.claim(1, now()).jobs], now())

    assert all(keys.BATCH_TTL_S - DEADLINE_S < connection.ttl(key) <= keys.BATCH_TTL_S for key in of_batch)


def test_a_failed_job_that_somebody_requeues_moves_to_the_other_count(connection: Redis) -> None:
    batch = submit(connection, "a")
    worker = store(connection)
    [claimed] = worker.claim(1, now()).jobs
    worker.end([endings.gave_up(claimed, "engine_error", "boom")], now())

    fetch(connection, claimed.job_id).requeue()
    worker.end([finished(again) for again in worker.claim(1, now()).jobs], now())

    counts = batch.counts()
    assert (counts.num_failed, counts.num_finished, counts.num_ended) == (0, 1, 1)


def test_a_running_job_that_rq_cancels_gets_its_answer_and_its_event_from_the_worker(connection: Redis) -> None:
    batch = submit(connection, "a")
    worker = store(connection)
    [claimed] = worker.claim(1, now()).jobs
    fetch(connection, claimed.job_id).cancel()

    states = worker.beat([claimed], now())
    written = worker.end([endings.cancelled(claimed, "canceled", with_batch=False)], now())

    assert (states, written) == (["canceled"], [True])
    assert status(connection, claimed.job_id) == "canceled"
    assert answer(connection, claimed.job_id)["error"]["code"] == "cancelled"
    assert events(connection, batch) == {f"{claimed.job_id}:cancelled": 1}


def test_a_job_that_was_deleted_while_it_ran_is_not_written_again(connection: Redis) -> None:
    job = enqueue_plain(connection)
    worker = store(connection)
    [claimed] = worker.claim(1, now()).jobs
    fetch(connection, job.id).delete()

    assert worker.beat([claimed], now()) == ["lost"]
    assert worker.end([finished(claimed)], now()) == [False]
    assert connection.exists(job.key, f"rq:results:{job.id}") == 0


def test_a_job_that_depends_on_ours_is_enqueued_when_ours_ends(connection: Redis) -> None:
    parent = enqueue_plain(connection)
    child = enqueue_plain(connection, depends_on=parent)
    worker = store(connection)
    [claimed] = worker.claim(5, now()).jobs

    worker.end([finished(claimed)], now())

    assert status(connection, child.id) == "queued"
    assert queue_of(connection).job_ids == [child.id]


# --- Leases ---------------------------------------------------------------------------------------------------


def test_a_beat_extends_the_lease_once_a_third_of_it_has_gone_by(connection: Redis) -> None:
    enqueue_plain(connection)
    worker, start = store(connection), now()
    [claimed] = worker.claim(1, start).jobs
    member = f"{claimed.job_id}:{claimed.execution_id}"

    worker.beat([claimed], start + 10)
    early = connection.zscore("rq:wip:mlxq", member)
    worker.beat([claimed], start + 40)
    late = connection.zscore("rq:wip:mlxq", member)

    assert early == pytest.approx(start + LEASE_S, abs=0.01)
    assert late == pytest.approx(start + 40 + LEASE_S, abs=0.01)
    execution = Execution.fetch(claimed.execution_id, claimed.job_id, connection)
    assert execution.last_heartbeat.timestamp() == pytest.approx(start + 40, abs=0.01)


@pytest.mark.parametrize("behind_s", [-3600, 3600])
def test_a_worker_whose_clock_differs_takes_no_live_job_and_its_own_is_not_taken(
    connection: Redis, behind_s: float
) -> None:
    jobs = [enqueue_plain(connection) for _ in range(2)]
    right, wrong = (JobStore(connection, name, [keys.DEFAULT_QUEUE], lease_s=LEASE_S) for name in ("right", "wrong"))

    held = [*right.claim(1, now()).jobs, *wrong.claim(1, now() - behind_s).jobs]
    recovered = [right.recover_expired(now()), wrong.recover_expired(now() - behind_s)]

    assert [found.num_requeued for found in recovered] == [0, 0]
    assert right.beat(held[:1], now()) + wrong.beat(held[1:], now() - behind_s) == ["held", "held"]
    assert {status(connection, job.id) for job in jobs} == {"started"}


def test_a_lease_that_has_run_out_on_rediss_clock_is_recovered(connection: Redis) -> None:
    job = enqueue_plain(connection)
    worker = JobStore(connection, "w1", [keys.DEFAULT_QUEUE], lease_s=LEASE_S)
    [claimed] = worker.claim(1, now()).jobs
    connection.zadd("rq:wip:mlxq", {f"{job.id}:{claimed.execution_id}": now() - 1})

    assert worker.recover_expired(now()).num_requeued == 1


def test_how_long_redis_has_been_running_is_as_it_says(mortal_redis: MortalRedis) -> None:
    with redis_at(mortal_redis.url) as connection:
        store = JobStore(connection, "w1", ["mlxq"])
        young = store.uptime_s()
        connection.acl_setuser("default", commands=["-info"])
        assert (young < 60, store.uptime_s()) == (True, float("inf"))


def test_a_released_job_is_first_in_line_again_and_has_no_strike(connection: Redis) -> None:
    ids = [enqueue_plain(connection).id for _ in range(4)]
    worker = store(connection)
    claimed = worker.claim(3, now()).jobs

    worker.release(claimed, now())

    assert queue_of(connection).job_ids == ids
    assert {status(connection, job_id) for job_id in ids} == {"queued"}
    assert [job.strikes for job in worker.claim(4, now()).jobs] == [0, 0, 0, 0]


def test_a_job_that_is_not_ours_any_more_is_not_released(connection: Redis) -> None:
    enqueue_plain(connection)
    worker = store(connection)
    [claimed] = worker.claim(1, now()).jobs
    worker.end([finished(claimed)], now())

    worker.release([claimed], now())

    assert queue_of(connection).job_ids == []
    assert status(connection, claimed.job_id) == "finished"


def test_a_claim_whose_reply_was_lost_goes_back_and_what_is_held_stays(connection: Redis) -> None:
    held, lost = enqueue_plain(connection), enqueue_plain(connection)
    worker = store(connection)
    ours = worker.claim(1, now()).jobs
    worker.claim(1, now())

    assert worker.release_strays(ours, now()) == 1
    assert queue_of(connection).job_ids == [lost.id]
    assert status(connection, held.id) == "started"


def test_jobs_of_a_dead_worker_go_back_to_the_front_in_their_order_with_a_strike(connection: Redis) -> None:
    ids = [enqueue_plain(connection).id for _ in range(3)]
    store(connection, "dead").claim(2, now())
    alive = store(connection, "alive")

    too_early = alive.recover_expired(now() + LEASE_S / 2)
    recovered = alive.recover_expired(now() + LEASE_S + 1)
    claimed = alive.claim(5, later()).jobs

    assert (too_early.num_requeued, recovered.num_requeued) == (0, 2)
    assert [(job.job_id, job.strikes) for job in claimed] == list(zip(ids, [1, 1, 0], strict=True))
    assert connection.exists("rq:worker:dead:executions") == 0


def lose_leases(connection: Redis, how: str) -> None:
    """As a stranger does who takes RQ's keys for its own."""
    connection.delete("rq:wip:mlxq")
    if how == "overwritten":
        connection.set("rq:wip:mlxq", "a stranger's")


@pytest.mark.parametrize("how", ["overwritten", "deleted"])
def test_a_worker_whose_leases_a_stranger_took_has_them_again(connection: Redis, how: str) -> None:
    batch = submit(connection, "a", "b", "c")
    worker = store(connection)
    claimed = worker.claim(3, now()).jobs
    connection.delete(f"rq:execution:{claimed[2].job_id}:{claimed[2].execution_id}")  # its time was up, too

    lose_leases(connection, how)

    assert worker.beat(claimed, now() + 1) == ["held"] * 3
    lose_leases(connection, how)
    worker.release(claimed[:1], now() + 2)
    assert worker.end([finished(job) for job in claimed[1:]], now() + 3) == [True, True]
    assert [status(connection, job_id) for job_id in batch.job_ids()] == ["queued", "finished", "finished"]
    assert connection.zcard("rq:wip:mlxq") == 0


@pytest.mark.parametrize("how", ["overwritten", "deleted"])
def test_what_a_worker_held_that_died_without_its_leases_is_taken_over(connection: Redis, how: str) -> None:
    batch = submit(connection, "a", "b")
    store(connection, "dead").claim(2, now())
    connection.sadd("rq:workers:mlxq", "rq:worker:dead", "rq:worker:another")
    lose_leases(connection, how)

    neighbour = store(connection, "neighbour")
    early = neighbour.recover_expired(now() + 1).num_requeued
    late = neighbour.recover_expired(now() + LEASE_S + 2).num_requeued

    assert (early, late) == (0, 2)
    assert [job.job_id for job in neighbour.claim(2, now() + 2 * LEASE_S).jobs] == list(batch.job_ids())


@pytest.mark.parametrize("job_id", ["mail:er:1", ":", "a:", ":b", "two\nlines"])
@pytest.mark.parametrize("how", ["silent", "seen to die", "ended in peace", "a lost claim"])
def test_what_older_producers_call_their_jobs_comes_back_from_dead_workers_too(
    connection: Redis, job_id: str, how: str
) -> None:
    """RQ allowed any id before it allowed only letters, digits, dashes and underscores."""
    [made] = submit(connection, "a").job_ids()
    connection.rename(f"rq:job:{made}", f"rq:job:{job_id}")
    connection.delete("rq:queue:mlxq")
    connection.lpush("rq:queue:mlxq", job_id)
    worker, neighbour = store(connection, "dead"), store(connection, "neighbour")
    assert len(worker.claim(1, now()).jobs) == 1

    if how == "a lost claim":
        worker.release_strays([], now())
    elif how != "silent":
        neighbour.abandon("dead", now(), has_died=how == "seen to die")
    neighbour.recover_expired(now() + LEASE_S + 1)

    assert [job.job_id for job in neighbour.claim(1, now() + 2 * LEASE_S).jobs] == [job_id]


@pytest.mark.parametrize("key", ["rq:workers:mlxq", "rq:finished:mlxq", "rq:failed:mlxq", "rq:ready:mlxq"])
def test_cleaning_passes_over_names_that_are_no_text(connection: Redis, key: str) -> None:
    add = connection.sadd if key == "rq:workers:mlxq" else lambda key, name: connection.zadd(key, {name: 1})
    add(key, b"rq:worker:\xff")

    for worker in (store(connection, "w1"), store(connection, "w2")):
        worker.clean_registries()

    assert not connection.exists(key) or key == "rq:ready:mlxq"  # RQ itself can't read that one


def test_a_worker_holds_nothing_in_a_queue_that_it_has_not_claimed_it_from(connection: Redis) -> None:
    """A job may lie in another queue than the one that it was made for."""
    [job_id] = submit(connection, "a").job_ids()
    connection.rename("rq:queue:mlxq", "rq:queue:other")
    connection.sadd("rq:workers:mlxq", "rq:worker:w")
    worker = JobStore(connection, "w", ["mlxq", "other"], lease_s=LEASE_S, lease_clock="caller")
    claimed = worker.claim(1, now()).jobs

    for seconds in range(0, 200, 20):
        worker.beat(claimed, now() + seconds)
        store(connection, "neighbour").recover_expired(now() + seconds)

    assert status(connection, job_id) == "started"
    assert connection.zcard("rq:wip:mlxq") == 0


def test_a_job_with_strikes_is_tried_again_after_a_delay_that_doubles_and_has_a_ceiling(connection: Redis) -> None:
    job = enqueue_plain(connection)
    worker, moment, delays = store(connection), now(), []
    for strikes in (1, 1, 10):
        [claimed] = worker.claim(1, moment).jobs
        worker.release([claimed], moment, strikes=strikes)
        delays.append(connection.zscore(keys.delayed(keys.DEFAULT_QUEUE), job.id) - moment)
        assert worker.claim(1, moment + delays[-1] - 0.01).jobs == []
        moment += delays[-1] + 0.01

    assert delays == pytest.approx([FIRST_DELAY_S, 2 * FIRST_DELAY_S, MAX_DELAY_S], abs=1e-3)
    assert [claimed.job_id for claimed in worker.claim(1, moment).jobs] == [job.id]


def test_jobs_without_a_strike_do_not_wait_for_those_with_one(connection: Redis) -> None:
    struck, fine = enqueue_plain(connection), enqueue_plain(connection)
    worker, moment = store(connection), now()
    worker.release(worker.claim(1, moment).jobs, moment, strikes=1)

    claim = worker.claim(5, moment)

    assert [job.job_id for job in claim.jobs] == [fine.id]
    assert claim.num_queued == 1, "the other one still waits, so a burst isn't over"
    assert status(connection, struck.id) == "queued"


def test_a_job_that_is_cancelled_while_it_waits_to_be_tried_again_ends_once(connection: Redis) -> None:
    batch = submit(connection, "a", "b")
    worker, moment = store(connection), now()
    worker.release(worker.claim(2, moment).jobs, moment, strikes=1)

    assert batch.cancel_job(batch.job_id("r0"))
    assert batch.cancel() == 1

    assert worker.claim(5, later()).jobs == []
    assert sorted(events(connection, batch).values()) == [1, 1]
    assert connection.zcard(keys.delayed(keys.DEFAULT_QUEUE)) == 0


def test_the_last_strike_brings_the_job_to_whoever_finds_it_so_that_it_can_be_failed(connection: Redis) -> None:
    job = enqueue_plain(connection)
    moment = now()
    for _ in range(MAX_STRIKES - 1):
        store(connection, "dead").claim(1, moment)
        store(connection).recover_expired(moment + LEASE_S + 1)
        moment += LEASE_S + MAX_DELAY_S + 1
    store(connection, "dead").claim(1, moment)

    [struck_out] = store(connection).recover_expired(moment + LEASE_S + 1).struck_out

    assert (struck_out.job_id, struck_out.strikes) == (job.id, MAX_STRIKES)
    store(connection).end([endings.gave_up(struck_out, "worker_crashed", "died 3 times")], now())
    assert answer(connection, job.id)["error"]["code"] == "worker_crashed"


def test_recovery_after_rqs_own_maintenance_finds_nothing_to_do(connection: Redis) -> None:
    job = enqueue_plain(connection, failure_ttl=60)
    worker = store(connection)
    [claimed] = worker.claim(1, now()).jobs
    StartedJobRegistry(queue=queue_of(connection)).cleanup(timestamp=now() + LEASE_S + 1)

    recovered = worker.recover_expired(now() + LEASE_S + 1)

    assert (recovered.num_requeued, recovered.struck_out) == (0, [])
    assert status(connection, job.id) == "failed"
    assert worker.end([finished(claimed)], now()) == [False]


def test_maintenance_forgets_finished_jobs_that_have_expired(connection: Redis) -> None:
    enqueue_plain(connection)
    worker = store(connection)
    worker.end([finished(claimed) for claimed in worker.claim(1, now()).jobs], now() - keys.RESULT_TTL_S - 5)

    worker.clean_registries()

    assert connection.zcard("rq:finished:mlxq") == 0


def test_only_cancelled_batches_are_reported(connection: Redis) -> None:
    live, dead = submit(connection, "a"), submit(connection, "b")
    connection.hset(keys.batch(dead.id), "cancelled", 1)

    assert store(connection).cancelled_batches({live.id, dead.id, "unknown"}) == {dead.id}


def test_an_answer_that_is_not_json_is_an_error_and_not_a_placeholder(connection: Redis) -> None:
    enqueue_plain(connection)
    [claimed] = store(connection).claim(1, now()).jobs
    details = StopDetails(type="max_tokens")
    choice = Choice(index=0, text="", finish_reason="length", stop_reason=None, stop_details=details)
    run = RunInfo(eos=(), seed=0, content_hash="", queue_s=float("nan"), prefill_s=0.0, decode_s=0.0)
    usage = Usage(prompt_tokens=1, completion_tokens=1)
    result = Result(
        custom_id="r",
        request_id="r",
        endpoint="/v1/completions",
        model="m",
        created=1,
        choices=(choice,),
        usage=usage,
        run=run,
    )

    with pytest.raises(ValueError, match="JSON"):
        endings.answered(claimed, result, None)
