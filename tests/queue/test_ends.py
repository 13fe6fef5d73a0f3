"""A job ends by its worker, by a cancellation or outside mlxq: its batch can't tell these apart."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis
from rq.job import Job, JobStatus

from mlxq import keys
from mlxq.queue.client import Client
from mlxq.requests.build import request
from mlxq_worker.jobs import endings
from mlxq_worker.jobs.claimed import ClaimedJob
from mlxq_worker.jobs.endings import Ending
from mlxq_worker.jobs.store import JobStore

OLD_TTL_S = 1000


class Place:
    """A batch of two waiting jobs; `a` is the one that is to end."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.client = Client(redis)
        self.batch = self.client.submit([request(prompt="hi", custom_id=custom_id) for custom_id in "ab"], "b1")
        self.job_id = self.batch.job_id("a")
        self.store = JobStore(redis, "worker", [keys.DEFAULT_QUEUE])

    @property
    def keys(self) -> tuple[str, str, str]:
        return keys.batch("b1"), keys.batch_jobs("b1"), keys.batch_events("b1")

    @property
    def job(self) -> Job:
        return Job.fetch(self.job_id, self.redis, "json")

    def claim(self) -> ClaimedJob:
        [job] = self.store.claim(1, time.time()).jobs
        assert job.job_id == self.job_id
        return job

    def end(self, ending: Ending) -> None:
        assert self.store.end([ending], time.time()) == [True]

    def counts(self) -> tuple[int, int, int]:
        counts = self.batch.counts()
        return counts.num_finished, counts.num_failed, counts.num_cancelled

    def events(self) -> list[dict[str, str]]:
        entries: Any = self.redis.xrange(keys.batch_events("b1"))
        return [{name.decode(): value.decode() for name, value in fields.items()} for _, fields in entries]


@pytest.fixture
def place(connection: Redis) -> Place:
    return Place(connection)


def failed(job: ClaimedJob) -> Ending:
    return endings.gave_up(job, "worker_crashed", "It crashed.")


def finished(job: ClaimedJob) -> Ending:
    return Ending(job=job, outcome="finished", rq_status="finished", answer=failed(job).answer)


def worker_finishes(place: Place) -> None:
    place.end(finished(place.claim()))


def worker_fails(place: Place) -> None:
    place.end(failed(place.claim()))


def worker_drops_a_cancelled_row(place: Place) -> None:
    job = place.claim()
    assert place.batch.cancel_job(place.job_id)
    place.end(finished(job))


def cancelled_while_it_waits(place: Place) -> None:
    assert place.batch.cancel_job(place.job_id)


def status_set_outside(status: JobStatus) -> Callable[[Place], None]:
    def end(place: Place) -> None:
        place.redis.lrem("rq:queue:mlxq", 1, place.job_id)
        place.job.set_status(status)
        place.batch.counts()  # whoever counts finds out

    return end


def deleted_outside(place: Place) -> None:
    place.job.delete()
    place.batch.counts()


WAYS: dict[str, tuple[Callable[[Place], None], str]] = {
    "a worker finishes": (worker_finishes, "finished"),
    "a worker fails it": (worker_fails, "failed"),
    "a worker drops its row": (worker_drops_a_cancelled_row, "cancelled"),
    "it is cancelled while it waits": (cancelled_while_it_waits, "cancelled"),
    "RQ says finished": (status_set_outside(JobStatus.FINISHED), "finished"),
    "RQ says failed": (status_set_outside(JobStatus.FAILED), "failed"),
    "RQ says canceled": (status_set_outside(JobStatus.CANCELED), "cancelled"),
    "RQ says stopped": (status_set_outside(JobStatus.STOPPED), "cancelled"),
    "RQ deletes it": (deleted_outside, "failed"),
}


@pytest.mark.parametrize(("end", "outcome"), WAYS.values(), ids=WAYS)
def test_every_end_is_counted_once_told_once_and_renews_the_whole_batch(
    place: Place, end: Callable[[Place], None], outcome: str
) -> None:
    # given a batch that nobody has written to for long
    for key in place.keys:
        place.redis.expire(key, OLD_TTL_S)

    # when
    end(place)

    # then its counts and its events say so, and all of it lives on
    assert place.counts() == tuple(int(outcome == name) for name in ("finished", "failed", "cancelled"))
    [event] = place.events()
    assert (event["job"], event["status"]) == (place.job_id, outcome)
    assert event.get("code") == ("job_lost" if end is deleted_outside else None)
    assert min(place.redis.ttl(key) for key in place.keys) > keys.BATCH_TTL_S - OLD_TTL_S
    assert end is deleted_outside or place.redis.hget(Job.key_for(place.job_id), "mlxq_outcome") == outcome.encode()


@pytest.mark.parametrize("ended_again", [worker_finishes, cancelled_while_it_waits])
def test_a_job_that_was_requeued_and_ends_otherwise_moves_from_one_count_to_the_other(
    place: Place, ended_again: Callable[[Place], None]
) -> None:
    # given a job that failed and that `rq requeue` put back
    worker_fails(place)
    place.batch.cancel_job(place.batch.job_id("b"))
    place.job.requeue()

    # when
    ended_again(place)

    # then it counts as one job
    assert sum(place.counts()) == place.batch.counts().total == 2
    assert place.counts()[1] == 0
    assert place.events()[0]["status"] == "failed"
    assert len(place.events()) == 3


@pytest.mark.parametrize("end", [worker_finishes, worker_fails, cancelled_while_it_waits])
def test_an_end_in_a_batch_that_is_gone_leaves_nothing_of_a_batch(place: Place, end: Callable[[Place], None]) -> None:
    place.redis.delete(*place.keys)

    end(place)

    assert place.redis.exists(*place.keys) == 0


@pytest.mark.parametrize("which", [0, 2])
@pytest.mark.parametrize("end", [worker_finishes, cancelled_while_it_waits])
def test_an_end_leaves_what_a_stranger_wrote_over_a_batch_alone(
    place: Place, end: Callable[[Place], None], which: int
) -> None:
    key = place.keys[which]
    place.redis.delete(key)
    place.redis.set(key, "a stranger's")

    end(place)

    assert place.redis.get(key) == b"a stranger's"
    assert place.redis.hget(Job.key_for(place.job_id), "mlxq_outcome") is not None
