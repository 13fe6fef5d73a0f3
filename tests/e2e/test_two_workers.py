"""A file goes through the queue: two workers share it, one is killed with jobs in its hands, RQ's tools look on."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

import pytest
from redis import Redis
from rq.job import Job, JobStatus
from rq.queue import Queue
from rq.suspension import resume, suspend
from rq.worker import Worker
from tests.support.batch_files import Line, choice, demo_examples, read_lines, requests, text_of, write_lines
from tests.support.processes import MLXQ, RQ, ended, rq, run, running
from tests.support.queued_jobs import fetch
from tests.support.redis_at import redis_at
from tests.support.waiting import DEADLINE_S, wait_until

from mlxq.queue.client import Client

EXAMPLES = demo_examples(80)
SHORT_LEASE = {"MLXQ_LEASE_S": "3", "MLXQ_MAINTENANCE_S": "0.5"}
NARROW = {"MLXQ_MAX_NUM_SEQS": "2"}
"""So that there is time to look and to kill."""
BARE = {"MLXQ_PARENT_PID": str(os.getpid())}
"""Without a supervisor of its own, which would start it again: as if its whole machine went down."""

pytestmark = pytest.mark.slow


@dataclass(frozen=True, slots=True)
class Story:
    """What came of the batch, as the collector, `mlxq status` and RQ's tools saw it. Jobs go by their custom ids,
    workers by RQ's names for them."""

    lines: dict[str, Line]
    collect_exit_code: int
    status: dict[str, Any]
    rq_info: str
    victim: str
    survivor: str
    held_by_victim: set[str]
    return_values: dict[str, Any]
    answered_by: dict[str, str]
    first: Job
    dependent: Job


def names_of_ready_workers(connection: Redis, *pids: int) -> list[str]:
    """RQ's names for the workers with these process ids, once each has its model and finds the queue suspended."""
    found: dict[int | None, str] = {}

    def look() -> bool:
        workers = Worker.all(connection=connection, serializer="json")
        found.update({worker.pid: worker.name for worker in workers if worker.get_state() == "suspended"})
        return found.keys() >= set(pids)

    wait_until(look, "workers that are ready")
    return [found[pid] for pid in pids]


def state_of(connection: Redis, worker: str) -> str:
    return bytes(connection.hget(f"rq:worker:{worker}", "state") or b"").decode()


def num_ended(connection: Redis, worker: str) -> int:
    return int(connection.hget(f"rq:worker:{worker}", "successful_job_count") or 0)


def held(connection: Redis, worker: str) -> set[str]:
    """The ids of the jobs that a worker has claimed and not ended."""
    members = cast("set[bytes]", connection.smembers(f"rq:worker:{worker}:executions"))
    return {member.decode().partition(":")[0] for member in members}


def worker_of(job: Job) -> str:
    result = job.latest_result()
    assert result is not None
    return str(result.worker_name)


@pytest.fixture(scope="module")
def story(redis_server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """80 requests and two workers; the first one is killed in the middle."""
    url, directory = redis_server_url, tmp_path_factory.mktemp("two-workers")
    source, output = write_lines(directory / "in.jsonl", requests(EXAMPLES)), directory / "out.jsonl"
    worker = (*MLXQ, "worker", "--model", "demo", "--url", url)
    with redis_at(url) as connection:
        connection.flushall()
        suspend(connection)  # until both workers are ready
        batch = Client(connection).batch(run(*MLXQ, "enqueue", "-i", str(source), "--url", url).stdout.strip())
        collect = (*MLXQ, "collect", batch.id, "-o", str(output), "--follow", "--url", url)
        first = batch.job_id(next(iter(EXAMPLES)))
        dependent = Queue("after", connection=connection).enqueue("operator.add", 2, 3, depends_on=first)
        with (
            running(*worker, **SHORT_LEASE, **NARROW, **BARE) as victim,
            running(*worker, **SHORT_LEASE, **NARROW, **BARE) as survivor,
            running(*collect) as collector,
        ):
            names = names_of_ready_workers(connection, victim.pid, survivor.pid)
            resume(connection)
            wait_until(lambda: all(num_ended(connection, name) >= 5 for name in names), "both to work")
            victim.kill()
            victim.wait(DEADLINE_S)
            held_by_victim = held(connection, names[0])
            wait_until(lambda: state_of(connection, names[1]) != "suspended", "the survivor to say that it goes on")
            rq_info = rq(url, "info")
            ended(collector)
        assert run(*RQ, "worker", "-w", "rq.worker.SimpleWorker", "--burst", "after", "-u", url).returncode == 0
        jobs = {custom_id: fetch(connection, batch.job_id(custom_id)) for custom_id in EXAMPLES}
        return Story(
            lines=read_lines(output),
            collect_exit_code=collector.returncode,
            status=json.loads(run(*MLXQ, "status", batch.id, "--json", "--url", url).stdout)["batch"],
            rq_info=rq_info,
            victim=names[0],
            survivor=names[1],
            held_by_victim={custom_id for custom_id, job in jobs.items() if job.id in held_by_victim},
            return_values={custom_id: job.return_value() for custom_id, job in jobs.items()},
            answered_by={custom_id: worker_of(job) for custom_id, job in jobs.items()},
            first=fetch(connection, first),
            dependent=Job.fetch(dependent.id, connection=connection),
        )


def test_collect_has_every_answer_exactly_once(story: Story) -> None:
    right = [name for name, example in EXAMPLES.items() if text_of(story.lines[name]) == example.expected_text]

    assert story.collect_exit_code == 0
    assert story.lines.keys() == EXAMPLES.keys()
    assert len(right) >= 0.95 * len(EXAMPLES)


def test_both_workers_answered_and_the_survivor_took_over_what_the_victim_held(story: Story) -> None:
    answered_by = Counter(story.answered_by.values())

    assert answered_by.keys() == {story.victim, story.survivor}
    assert min(answered_by.values()) >= 5
    assert story.held_by_victim
    assert {story.answered_by[custom_id] for custom_id in story.held_by_victim} == {story.survivor}


def test_the_counts_of_the_batch_add_up(story: Story) -> None:
    bodies = [line["response"]["body"] for line in story.lines.values()]
    ends = Counter(choice(line)["stop_details"]["token_id"] for line in story.lines.values())

    counts = {"total": len(EXAMPLES), "num_finished": len(EXAMPLES), "num_failed": 0, "num_cancelled": 0}
    tokens = {name: sum(body["usage"][name] for body in bodies) for name in ("prompt_tokens", "completion_tokens")}
    assert counts.items() <= story.status.items()
    assert tokens.items() <= story.status.items()
    assert story.status["state"] == "done"
    assert {stop["token_id"]: stop["count"] for stop in story.status["stops"]} == ends


def test_rq_info_shows_the_queue_and_the_workers_meanwhile(story: Story) -> None:
    assert re.search(r"^mlxq .* \d+ executing, \d+ finished, 0 failed$", story.rq_info, re.MULTILINE), story.rq_info
    assert re.search(rf"^{story.survivor} .*: (busy|idle) mlxq\.", story.rq_info, re.MULTILINE), story.rq_info
    assert story.victim in story.rq_info  # RQ drops it when its entry expires


def test_the_return_value_of_each_job_is_its_output_line(story: Story) -> None:
    assert story.return_values == story.lines


def test_a_stock_job_that_depends_on_one_of_ours_is_run_after_it_by_a_stock_worker(story: Story) -> None:
    assert story.dependent.get_status() == JobStatus.FINISHED
    assert story.dependent.return_value() == 5
    assert story.first.ended_at is not None
    assert story.dependent.started_at is not None
    assert story.dependent.started_at > story.first.ended_at
