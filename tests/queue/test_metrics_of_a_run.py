"""What is served over a real Redis: of queues, and of a worker whose process dies and is started again."""

from __future__ import annotations

import logging
import time
import urllib.request

from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from tests.support.fake_engine import FakeWorker
from tests.support.queued_jobs import enqueue_plain, events, submit
from tests.support.redis_fixture import MortalRedis
from tests.support.supervised import command, variables
from tests.support.waiting import DEADLINE_S, wait_until

from mlxq.cli import main
from mlxq.metrics.address import Address
from mlxq.metrics.queue_figures import QueueFigures
from mlxq.queue.client import Client
from mlxq.queue.connect import connect
from mlxq.requests.openai import text_request
from mlxq_worker.supervision.dead_workers import DeadWorkers
from mlxq_worker.supervision.metrics_port import open_port
from mlxq_worker.supervision.supervisor import Supervisor
from mlxq_worker.supervision.totals import Totals
from mlxq_worker.supervision.worker_process import WorkerProcess


def numbers(figures: QueueFigures) -> dict[tuple[str, ...], float]:
    return {(number.name, *number.labels): number.value for number in figures.snapshot().numbers}


def test_queues_and_batches_are_told_of(connection: Redis) -> None:
    submit(connection, "one", "two", "three")
    Client(connection).open("open-one").add([text_request("four", custom_id="r0")])
    enqueue_plain(connection)

    found = numbers(QueueFigures(connection))

    assert found["redis_up",] == 1
    assert found["job_count", "mlxq", "waiting"] == 5
    assert found["job_count", "mlxq", "failed"] == 0
    assert found["batches", "mlxq", "running"] == 1
    assert found["batches", "mlxq", "open"] == 1
    assert found["batch_jobs", "mlxq", "pending"] == 4
    assert found["workers", "mlxq", "idle"] == 0
    assert found["oldest_unfinished_batch_seconds", "mlxq"] >= 0


def test_only_the_queues_that_are_asked_for_are_told_of(connection: Redis) -> None:
    submit(connection, "one")

    found = numbers(QueueFigures(connection, ["other"]))

    assert {key[1] for key in found if len(key) > 1} == {"other"}


def test_what_holds_something_else_is_left_out_and_the_rest_is_told(connection: Redis) -> None:
    connection.set("rq:queue:mlxq", "a stranger's")
    connection.zadd("mlxq:batches", {"broken": 1.0})
    connection.set("mlxq:batch:broken", "a stranger's")

    found = numbers(QueueFigures(connection, ["mlxq"]))

    assert ("job_count", "mlxq", "waiting") not in found
    assert found["job_count", "mlxq", "running"] == 0
    assert found["broken_batches",] == 1


def test_without_redis_it_is_told_that_it_is_away(mortal_redis: MortalRedis) -> None:
    now = [0.0]
    with connect(mortal_redis.url, timeout_s=DEADLINE_S) as connection:
        figures = QueueFigures(connection, clock=lambda: now[0])
        before = numbers(figures)["redis_up",]
        mortal_redis.kill()
        just_after = numbers(figures)["redis_up",]
        now[0] = 5.0

        assert (before, just_after) == (1, 1)
        assert numbers(figures) == {("redis_up",): 0}


def test_a_command_prints_what_it_would_serve(redis_url: str, connection: Redis) -> None:
    submit(connection, "one")

    result = CliRunner().invoke(main, ["metrics", "--once", "--url", redis_url])

    assert result.exit_code == 0
    families = {family.name for family in text_string_to_metric_families(result.stdout)}
    assert {"mlxq_job_count", "mlxq_batches", "mlxq_redis_up"} <= families


def scraped(url: str) -> dict[tuple[str, ...], float]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=DEADLINE_S) as answer:
        text = answer.read().decode()
    labels = ("finished_reason", "reason", "code", "queue", "state")
    return {
        (sample.name.removeprefix("mlxq_"), *(sample.labels[name] for name in labels if name in sample.labels)): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def test_a_scrape_is_answered_while_a_worker_dies_and_comes_back(redis_url: str, connection: Redis) -> None:
    good = submit(connection, "fine", "also fine", "bad")
    totals = Totals()
    dead_workers = DeadWorkers(connection, ["mlxq"])
    environment = variables(MLXQ_MODEL="fake", MLXQ_URL=redis_url, MLXQ_MAINTENANCE_S="0.1")
    worker = WorkerProcess(
        command(FakeWorker),
        environment,
        tell=logging.getLogger("mlxq.supervisor").warning,
        on_end=dead_workers.release,
        totals=totals,
    )
    port = open_port(Address(0), totals, QueueFigures(connection, ["mlxq"]), model="fake", queues=["mlxq"])
    seen: list[dict[tuple[str, ...], float]] = []

    with port, worker:
        supervisor = Supervisor(worker, dead_workers, 5.0, totals)

        def look() -> dict[tuple[str, ...], float]:
            supervisor.turn(time.monotonic())
            seen.append(scraped(f"http://{port.address}"))
            return seen[-1]

        wait_until(lambda: look().get(("request_success_total", "length")) == 2, "two answers")
        wait_until(lambda: look()["generation_tokens_total",] == 6, "what the decode thread has counted")
        submit(connection, "die")
        wait_until(lambda: look()["worker_restarts_total", "died"] == 1, "its death")
        wait_until(lambda: look().get(("job_retries_total", "worker_died")) == 1, "its next life")

    last = seen[-1]
    assert sum(events(connection, good).values()) == 3
    assert last["request_success_total", "length"] == 2  # of the first process
    assert last["request_failure_total", "bad_prompt"] == 1
    assert last["strikes_total",] == 1
    assert last["generation_tokens_total",] == 6
    assert last["time_to_first_token_seconds_count",] == 2
    ups = [scrape["worker_up",] for scrape in seen]
    assert {0.0, 1.0} == set(ups)
    for name in ("generation_tokens_total", "strikes_total"):
        counts = [scrape[name,] for scrape in seen]
        assert counts == sorted(counts)
