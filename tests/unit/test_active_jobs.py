"""How many rows a worker counts as active, whatever becomes of its jobs."""

from __future__ import annotations

from random import Random

import pytest
from tests.support.fake_engine import FakePreparer
from tests.support.row_results import row_result
from tests.support.row_specs import row_named, row_spec

from mlxq.contract import Beam, Request, Sampling
from mlxq_worker.engine.api import RowSpec
from mlxq_worker.jobs.active import ActiveJob, ActiveJobs
from mlxq_worker.jobs.claimed import ClaimedJob
from mlxq_worker.prepared import PreparedRequest

REQUEST = Request(custom_id="c", endpoint="/v1/completions", prompt="Hi", sampling=Sampling(), content_hash="ab" * 32)


def claimed(name: str) -> ActiveJob:
    return ActiveJob(
        ClaimedJob(job_id=name, execution_id=name, queue="q", data=b"", claimed_at=0.0, enqueued_at=0.0, custom_id="c")
    )


def several(name: str, count: int) -> tuple[RowSpec, ...]:
    return tuple(row_spec(row_id=f"{name}#{index}") for index in range(count))


def prepared(specs: tuple[RowSpec, ...]) -> PreparedRequest:
    return PreparedRequest(FakePreparer(), REQUEST, specs)


def test_a_beam_search_takes_its_width_until_all_of_its_answers_have_come() -> None:
    jobs, active = ActiveJobs(), claimed("a")
    jobs.add(active)

    jobs.open_rows(active, prepared((row_spec(row_id="a", beam=Beam(width=4), num_beams_returned=2),)))
    before = jobs.num_open_rows
    jobs.row_ended(active, row_result(row_id=row_named("a")))
    between = set(active.open_ids)
    jobs.row_ended(active, row_result(row_id=row_named("a#1")))

    assert (before, between, active.open_ids) == (4, {row_named("a#1")}, set())
    assert jobs.num_open_rows == 0


def test_each_row_of_a_job_is_an_answer_to_wait_for() -> None:
    jobs, active = ActiveJobs(), claimed("a")
    jobs.add(active)

    jobs.open_rows(active, prepared(several("a", 3)))
    jobs.row_ended(active, row_result(row_id=row_named("a#1")))

    assert active.open_ids == {row_named("a#0"), row_named("a#2")}
    assert jobs.num_open_rows == 2


def test_a_job_that_is_forgotten_is_not_prepared_any_more() -> None:
    jobs, active = ActiveJobs(), claimed("a")
    jobs.add(active)

    jobs.forget(active.job)

    assert jobs.next_unprepared() is None


def test_a_refused_beam_search_leaves_nothing_to_wait_for() -> None:
    jobs, active = ActiveJobs(), claimed("a")
    jobs.add(active)
    jobs.open_rows(active, prepared((row_spec(row_id="a", beam=Beam(width=4), num_beams_returned=2),)))

    jobs.row_refused(active, row_named("a"))

    assert not active.open_ids
    assert jobs.num_open_rows == 0


@pytest.mark.parametrize("seed", range(20))
def test_the_count_of_open_rows_is_their_sum_at_every_moment(seed: int) -> None:
    random, jobs = Random(seed), ActiveJobs()
    for index in range(10):
        jobs.add(claimed(f"job{index}"))
    while active := jobs.next_unprepared():
        jobs.open_rows(active, prepared(several(active.job.job_id, random.randint(1, 5))))

    while len(jobs):
        active = random.choice(list(jobs))
        row_id = random.choice(active.row_ids)
        if random.choice([True, False]):
            jobs.row_ended(active, row_result(row_id=row_id))
        else:
            jobs.row_refused(active, row_id)
        if not active.open_ids or random.random() < 0.1:
            jobs.forget(active.job)
        assert jobs.num_open_rows == sum(len(each.open_ids) for each in jobs)

    assert jobs.num_open_rows == 0
