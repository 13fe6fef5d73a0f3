"""Jobs that wait for others: whatever RQ does with them when a job of its own has ended, is done when one of ours has,
in the same step. What RQ does is looked up by letting it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import fakeredis
import pytest
from redis import Redis
from rq.job import Dependency, Job, JobStatus
from rq.queue import Queue
from rq.rate_limit import RateLimit, release_slot
from tests.support.queued_jobs import enqueue_plain, fetch, queue_of, status, submit
from tests.support.redis_at import redis_at

from mlxq import keys
from mlxq.errors import RequestError
from mlxq.queue.client import Client
from mlxq_worker.jobs import endings
from mlxq_worker.jobs.claimed import ClaimedJob
from mlxq_worker.jobs.endings import Ending
from mlxq_worker.jobs.store import JobStore

Outcome = str
State = dict[str, Any]


@pytest.fixture(params=["real", "embedded"])
def connection(request: pytest.FixtureRequest) -> Iterator[Redis]:
    if request.param == "embedded":
        with fakeredis.FakeRedis() as fake:
            yield fake
    else:
        with redis_at(request.getfixturevalue("redis_url")) as real:
            yield real


def store(connection: Redis) -> JobStore:
    return JobStore(connection, "w1", [keys.DEFAULT_QUEUE])


def ending(job: ClaimedJob, outcome: Outcome) -> Ending:
    if outcome == "failed":
        return endings.gave_up(job, "internal_error", "it broke")
    if outcome in ("canceled", "stopped"):
        return endings.cancelled(job, outcome, with_batch=False)  # type: ignore[arg-type]
    return Ending(job=job, outcome="finished", rq_status="finished", answer=b"e30=")


def other(connection: Redis) -> Queue:
    return Queue("after", connection=connection)  # with RQ's own serializer, as a stranger's


def parent_of(connection: Redis) -> Job:
    return enqueue_plain(connection, job_id="parent")


def wait_for(queue: Queue, parents: Any, name: str, **options: Any) -> Job:
    return queue.enqueue("operator.add", 2, 3, depends_on=parents, job_id=name, **options)


# --- What may wait for a job, each by its name ----------------------------------------------------------------


def plain_ones(connection: Redis, parent: Job) -> None:
    for number in range(5):
        wait_for(other(connection), parent, f"d{number}")


def in_several_queues(connection: Redis, parent: Job) -> None:
    wait_for(other(connection), parent, "after")
    wait_for(queue_of(connection), parent, "beside")
    wait_for(Queue("third", connection=connection), parent, "third")


def ones_that_allow_failures(connection: Redis, parent: Job) -> None:
    wait_for(other(connection), Dependency(jobs=[parent], allow_failure=True), "tolerant")
    wait_for(other(connection), parent, "strict")


def one_for_the_front(connection: Redis, parent: Job) -> None:
    other(connection).enqueue("operator.add", 1, 1, job_id="first")
    wait_for(other(connection), parent, "front", at_front=True)


def one_that_waits_for_another_too(connection: Redis, parent: Job) -> None:
    second = other(connection).enqueue("operator.add", 1, 1, job_id="second")
    wait_for(other(connection), [parent, second], "both")


def one_whose_other_parent_has_ended(connection: Redis, parent: Job) -> None:
    second, third, gone = (other(connection).enqueue("operator.add", 1, 1, job_id=name) for name in "abc")
    wait_for(other(connection), [parent, second], "of_finished")
    wait_for(other(connection), [parent, third], "of_failed")
    wait_for(other(connection), Dependency(jobs=[parent, third], allow_failure=True), "of_failed_tolerant")
    wait_for(other(connection), [parent, gone], "of_one_that_is_gone")
    second.set_status(JobStatus.FINISHED)
    third.set_status(JobStatus.FAILED)
    connection.delete(gone.key)


def one_that_was_cancelled(connection: Redis, parent: Job) -> None:
    wait_for(other(connection), parent, "cancelled").cancel()
    wait_for(other(connection), parent, "not")


def one_that_is_gone(connection: Redis, parent: Job) -> None:
    connection.delete(wait_for(other(connection), parent, "gone").key)
    wait_for(other(connection), parent, "there")


def ones_under_a_rate_limit(connection: Redis, parent: Job) -> None:
    for number in range(3):
        wait_for(other(connection), parent, f"d{number}", rate_limit=RateLimit("limit", 3))


def ones_under_a_rate_limit_that_is_reached(connection: Redis, parent: Job) -> None:
    other(connection).enqueue("operator.add", 1, 1, job_id="holder", rate_limit=RateLimit("limit", 1))
    for number in range(3):
        wait_for(other(connection), parent, f"d{number}", rate_limit=RateLimit("limit", 1), at_front=number == 1)


def one_with_a_lifetime(connection: Redis, parent: Job) -> None:
    wait_for(other(connection), parent, "short", ttl=5000)


def many_at_once(connection: Redis, parent: Job) -> None:
    data = [
        Queue.prepare_data("operator.add", (1, 2), job_id=f"m{number}", depends_on=[parent.id]) for number in range(3)
    ]
    other(connection).enqueue_many(data)


def nobody(connection: Redis, parent: Job) -> None:
    pass


SETTINGS = [
    plain_ones,
    in_several_queues,
    ones_that_allow_failures,
    one_for_the_front,
    one_that_waits_for_another_too,
    one_whose_other_parent_has_ended,
    one_that_was_cancelled,
    one_that_is_gone,
    ones_under_a_rate_limit,
    ones_under_a_rate_limit_that_is_reached,
    one_with_a_lifetime,
    many_at_once,
    nobody,
]


def state(connection: Redis) -> State:
    """What there is to be seen of all jobs but the parent."""
    found: State = {}
    for key in connection.scan_iter("rq:job:*"):
        if connection.type(key) == b"hash" and key != b"rq:job:parent":
            name = key.decode().removeprefix("rq:job:")
            left_ks = -(-int(connection.ttl(key)) // 1000)  # in thousands of seconds: some go by meanwhile
            found[name] = (connection.hget(key, "status"), connection.hget(key, "timeout"), left_ks)
            found[f"{name} was enqueued"] = bool(connection.hget(key, "enqueued_at"))
    for queue in ("after", "third", keys.DEFAULT_QUEUE):
        ids = connection.lrange(f"rq:queue:{queue}", 0, -1)
        found[f"front of {queue}"] = ids[:1] if b"front" in ids else []
        found[queue] = sorted(ids)
        found[f"deferred in {queue}"] = sorted(connection.zrange(f"rq:deferred:{queue}", 0, -1))
    found["left"] = sorted(connection.smembers("rq:job:parent:dependents"))
    found["limited"] = [sorted(connection.zrange(f"rq:rl:limit:{part}", 0, -1)) for part in ("allowed", "rate_limited")]
    found["limits"] = (connection.smembers("rq:rl-keys"), connection.hgetall("rq:rl:limit"))
    return found


def by_rq(connection: Redis, outcome: Outcome) -> None:
    parent = fetch(connection, "parent")
    connection.lrem("rq:queue:mlxq", 0, "parent")
    parent.set_status(JobStatus(outcome))
    queue_of(connection).enqueue_dependents(parent)
    release_slot(parent)


def by_us(connection: Redis, outcome: Outcome) -> None:
    worker = store(connection)
    [claimed] = worker.claim(1, time.time()).jobs
    assert worker.end([ending(claimed, outcome)], time.time()) == [True]


def by_us_twice(connection: Redis, outcome: Outcome) -> None:
    worker = store(connection)
    [claimed] = worker.claim(1, time.time()).jobs
    for _ in range(2):  # the first reply was lost
        assert worker.end([ending(claimed, outcome)], time.time()) == [True]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.__name__)
@pytest.mark.parametrize("outcome", ["finished", "failed", "canceled", "stopped"])
@pytest.mark.parametrize("end", [by_us, by_us_twice], ids=["once", "said twice"])
def test_what_waits_for_a_job_fares_as_it_does_with_rq(
    connection: Redis,
    setting: Callable[[Redis, Job], None],
    outcome: Outcome,
    end: Callable[[Redis, Outcome], None],
) -> None:
    setting(connection, parent_of(connection))
    by_rq(connection, outcome)
    expected = state(connection)
    connection.flushall()

    setting(connection, parent_of(connection))
    end(connection, outcome)

    assert state(connection) == expected
    assert bool(expected["left"]) == connection.exists("rq:job:parent:dependents")


def test_they_are_enqueued_in_the_order_in_which_they_came(connection: Redis) -> None:
    parent, names = parent_of(connection), [f"{number * 7 % 10}" for number in range(10)]
    for name in names:
        wait_for(other(connection), parent, name)

    by_us(connection, "finished")

    assert other(connection).job_ids == names


def test_a_place_under_a_rate_limit_goes_to_the_next(connection: Redis) -> None:
    first, second, third = (
        enqueue_plain(connection, job_id=f"j{number}", rate_limit=RateLimit("limit", 1)) for number in range(3)
    )

    by_us(connection, "finished")

    assert [status(connection, job.id) for job in (first, second, third)] == ["finished", "queued", "rate_limited"]
    assert connection.zrange("rq:rl:limit:allowed", 0, -1) == [second.id.encode()]


def test_a_job_that_is_not_waiting_any_more_is_not_run_twice(connection: Redis) -> None:
    child = wait_for(other(connection), parent_of(connection), "child")
    child.set_status(JobStatus.FINISHED)  # somebody enqueued it by hand

    by_us(connection, "finished")

    assert other(connection).job_ids == []
    assert status(connection, "child") == "finished"


@pytest.mark.parametrize(
    "key",
    [
        "rq:job:parent:dependents",
        "rq:job::child:dependencies",
        "rq:job:child",
        "rq:queue:after",
        "rq:deferred:after",
        "rq:queues",
        "rq:rl-keys",
        "rq:rl:limit",
        "rq:rl:limit:allowed",
        "rq:rl:limit:rate_limited",
    ],
)
def test_a_key_of_the_wrong_type_costs_those_behind_it_only(connection: Redis, key: str) -> None:
    parent = parent_of(connection)
    wait_for(other(connection), parent, "child", rate_limit=RateLimit("limit", 1))
    wait_for(queue_of(connection), parent, "beside")
    connection.delete(key)
    connection.set(key, "wrong")

    by_us(connection, "finished")

    assert status(connection, "parent") == "finished"
    is_moved = key == "rq:job:parent:dependents"  # it stood in the way of the job's own end
    assert connection.get(keys.moved(key) if is_moved else key) == b"wrong"
    if not is_moved:
        assert status(connection, "beside") == "queued"


@pytest.mark.parametrize(("outcome", "expected"), [("finished", "queued"), ("failed", "deferred")])
def test_what_waits_for_a_job_that_rqs_tools_ended_is_enqueued_by_whoever_finds_out(
    connection: Redis, outcome: Outcome, expected: str
) -> None:
    """RQ writes the end first and looks after the others then, if it lives so long."""
    batch = submit(connection, "a")
    parent = fetch(connection, batch.job_id("r0"))
    wait_for(other(connection), parent, "child")
    wait_for(other(connection), Dependency(jobs=[parent], allow_failure=True), "tolerant")
    connection.lpop("rq:queue:mlxq")
    parent.set_status(JobStatus(outcome))

    list(Client(connection, reconcile_s=0.0).batch(batch.id).collector().poll(0.0))

    assert [status(connection, name) for name in ("child", "tolerant")] == [expected, "queued"]


def test_an_end_in_a_full_redis_is_written_with_all_that_follows(redis_url: str) -> None:
    with redis_at(redis_url) as connection:
        names = [f"d{number}" for number in range(50)]
        parent = parent_of(connection)
        for name in names:
            wait_for(other(connection), parent, name)
        worker = store(connection)
        [claimed] = worker.claim(1, time.time()).jobs
        connection.config_set("maxmemory", 1)
        try:
            with pytest.raises(Exception, match="memory"):
                connection.set("x", "y")
            written = worker.end([ending(claimed, "finished")], time.time())
        finally:
            connection.config_set("maxmemory", 0)

        assert written == [True]
        assert status(connection, "parent") == "finished"
        assert sorted(other(connection).job_ids) == sorted(names)
        assert connection.zcard("rq:deferred:after") == 0


# --- RQ's job_timeout -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "allowance_s"),
    [(None, 180.0), (7, 7.0), ("2m", 120.0), (-1, None)],
    ids=["RQ's default", "7", "2m", "-1"],
)
def test_rqs_job_timeout_is_an_allowance(connection: Redis, given: Any, allowance_s: float | None) -> None:
    enqueue_plain(connection, job_timeout=given)

    [claimed] = store(connection).claim(1, time.time()).jobs

    assert claimed.allowance_s() == allowance_s


@pytest.mark.parametrize("given", ["soon", "nan", "1h", "\xff"])
def test_a_job_timeout_that_is_no_number_is_refused_by_name(connection: Redis, given: str) -> None:
    job = enqueue_plain(connection)
    connection.hset(job.key, "timeout", given.encode("latin-1"))

    [claimed] = store(connection).claim(1, time.time()).jobs

    with pytest.raises(RequestError, match="job_timeout must be a number of seconds"):
        claimed.allowance_s()
