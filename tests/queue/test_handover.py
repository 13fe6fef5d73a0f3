"""A run that leaves its requests to the next one into the same files: they stay in the queue, none is asked twice."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from tests.support.fake_worker import FakeWorker, echo, refuse
from tests.support.file_runs import Files, run
from tests.support.waiting import DEADLINE_S

from mlxq.contract import Request
from mlxq.errors import QueueError
from mlxq.files.bulk import LeftToOthers
from mlxq.files.tally import Tally
from mlxq.queue.client import Client

ALL = sorted(f"r{i}" for i in range(30))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    files = Files(tmp_path)
    files.write_numbered(30)
    return files


def leave_when(condition: Callable[[Tally], bool]) -> Callable[[Tally], bool]:
    def on_turn(tally: Tally) -> bool:
        if condition(tally):
            raise LeftToOthers
        return True

    return on_turn


def leave_all_queued(redis_url: str, files: Files) -> None:
    with pytest.raises(LeftToOthers):
        run(redis_url, files, batch_id="b", on_turn=leave_when(lambda tally: tally.num_inflight == 30))


def test_what_is_left_stays_in_the_queue_and_the_next_run_goes_on_with_it(redis_url: str, files: Files) -> None:
    leave_all_queued(redis_url, files)

    assert Client(redis_url).queue_length() == 30
    with FakeWorker(redis_url) as worker:
        summary = run(redis_url, files, batch_id="b")
    assert sorted(worker.custom_ids) == sorted(files.answers()) == ALL
    assert (summary.succeeded + summary.skipped, files.failures()) == (30, [])


def test_answers_that_came_meanwhile_are_taken_though_their_lines_are_read_later(redis_url: str, files: Files) -> None:
    # given a window that is smaller than what was answered
    leave_all_queued(redis_url, files)
    with FakeWorker(redis_url) as worker:
        Client(redis_url).batch("b").seal()
        Client(redis_url).batch("b").wait(DEADLINE_S)

    with FakeWorker(redis_url) as later:
        run(redis_url, files, batch_id="b", max_inflight=4)

    assert sorted(worker.custom_ids) == sorted(files.answers()) == ALL
    assert later.custom_ids == []


def test_failures_that_came_meanwhile_are_taken_too(redis_url: str, files: Files) -> None:
    leave_all_queued(redis_url, files)
    with FakeWorker(redis_url, refuse):
        Client(redis_url).batch("b").seal()
        Client(redis_url).batch("b").wait(DEADLINE_S)

    with FakeWorker(redis_url) as later:
        summary = run(redis_url, files, batch_id="b", max_inflight=4)

    assert (files.answers(), later.custom_ids, summary.failed) == ([], [], 30)
    assert sorted(files.failures()) == ALL


def test_a_job_that_was_lost_without_its_answer_meanwhile_is_asked_again(
    connection: Redis, redis_url: str, files: Files
) -> None:
    leave_all_queued(redis_url, files)
    Client(redis_url).batch("b").seal()
    for job_id in list(Client(redis_url).batch("b").job_ids())[10:20]:
        connection.delete(f"rq:job:{job_id}")
        connection.lrem("rq:queue:mlxq", 0, job_id)
    assert Client(redis_url).batch("b").counts().num_failed == 10

    with FakeWorker(redis_url):
        run(redis_url, files, batch_id="b", max_inflight=4)

    assert (sorted(files.answers()), files.failures()) == (ALL, [])


def test_a_run_that_is_stopped_before_it_reads_a_line_cancels_what_was_left(redis_url: str, files: Files) -> None:
    leave_all_queued(redis_url, files)

    summary = run(redis_url, files, batch_id="b", on_turn=lambda tally: False)

    assert summary.interrupted
    assert Client(redis_url).queue_length() == 0
    assert Client(redis_url).batch("b").counts().cancelled


def test_a_batch_that_others_have_cancelled_takes_no_more(redis_url: str, files: Files) -> None:
    leave_all_queued(redis_url, files)
    Client(redis_url).batch("b").cancel()
    files.write_numbered(31)

    with pytest.raises(QueueError, match="is cancelled"):
        run(redis_url, files, batch_id="b")


def test_a_run_that_leaves_halfway_has_written_each_answer_once_when_the_next_is_done(
    connection: Redis, redis_url: str, files: Files
) -> None:
    halfway = threading.Event()

    def stall(request: Request, job_id: str) -> dict[str, Any]:
        if request.custom_id == "r15":
            halfway.wait(DEADLINE_S)
        return echo(request, job_id)

    with FakeWorker(redis_url, stall) as worker:
        with pytest.raises(LeftToOthers):
            run(redis_url, files, batch_id="b", on_turn=leave_when(lambda tally: tally.succeeded >= 5))
        halfway.set()
        run(redis_url, files, batch_id="b")

    assert sorted(worker.custom_ids) == sorted(files.answers()) == ALL
    assert not list(connection.scan_iter("rq:job:*"))
