"""A key that holds something else than RQ or mlxq keeps there costs itself: neighbours are answered, no worker ends,
and the log names it once. Tried with every key that the sources of both have, one at a time, under load."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import Thread

import pytest
from click.testing import CliRunner
from redis import Redis
from tests.support.fake_engine import FakeWorker
from tests.support.key_templates import HOLE, templates
from tests.support.queued_jobs import fetch, submit
from tests.support.waiting import DEADLINE_S, wait_until

from mlxq import keys
from mlxq.cli import main
from mlxq.errors import QueueError
from mlxq.queue.batch import Batch
from mlxq.queue.client import Client
from mlxq.queue.rq_keys import kinds_for_worker
from mlxq.requests.openai import text_request
from mlxq_worker.config import EngineConfig, WorkerConfig

WORKER = "busy-bee"
QUEUE = keys.DEFAULT_QUEUE
LONG = 1_000_000
"""More tokens than any test waits for."""
STRINGS = ("rq:suspended", "rq:clean_registries:{}", "rq:clean_groups", "rq:scheduler-lock:{}")
"""Keys of RQ that hold strings."""
NOT_KEYS = ("rq:pubsub:{}",)
"""A channel."""
NOT_OF_WORKERS = ("mlxq:serve:{}",)
"""What no worker looks at; tests/queue/test_serve_restart.py has it."""
TEMPLATES = [template for template in templates() if template not in (*NOT_KEYS, *NOT_OF_WORKERS)]


class Worker(FakeWorker):
    """Says whether it ended, and on what."""

    error: BaseException | None = None

    def work_until_stopped(self) -> None:
        try:
            self.work()
        except BaseException as error:  # noqa: BLE001 - for the test to look at
            self.error = error


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxq_worker.jobs.mending.LOOK_S", 0.1)


@contextmanager
def working(connection: Redis) -> Iterator[Thread]:
    """A worker of two queues at work in a thread."""
    config = WorkerConfig(model="fake", lease_s=20, maintenance_s=0.2, engine=EngineConfig(max_num_seqs=8))
    worker = Worker([QUEUE, "other"], name=WORKER, connection=connection, serializer="json", config=config)
    thread = Thread(target=worker.work_until_stopped)
    thread.start()
    try:
        yield thread
    finally:
        for _ in range(2):
            worker.request_stop(15, None)
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
        assert worker.error is None


def neighbours(connection: Redis) -> list[Batch]:
    """New batches in both queues of the worker."""
    lines = [text_request("hello", custom_id=f"r{i}", defaults={"max_tokens": 2}) for i in range(3)]
    return [Client(connection, queue).submit(lines) for queue in (QUEUE, "other")]


def put_wrong_type(connection: Redis, template: str, key: str) -> None:
    connection.delete(key)
    if template in STRINGS:
        connection.rpush(key, "wrong")
    else:
        connection.set(key, "wrong")


class Victim:
    """A batch with a job that is decoded for as long as nobody ends it: all that names can be put into holes."""

    def __init__(self, connection: Redis) -> None:
        self.batch = submit(connection, "forever", max_tokens=LONG)
        job_id = self.batch.job_id("r0")
        wait_until(lambda: connection.hget(f"rq:job:{job_id}", "status") == b"started", "the victim to be claimed")
        [entry] = [item for item in connection.zrange("rq:wip:mlxq", 0, -1) if item.startswith(job_id.encode())]
        self.names: Mapping[str, str] = {
            "queue": QUEUE,
            "worker": WORKER,
            "job": job_id,
            "execution": entry.decode(),
            "batch": self.batch.id,
        }

    def end(self, connection: Redis) -> None:
        """By RQ's own means: the batch may be what is broken, or the job."""
        with suppress(Exception):
            fetch(connection, self.names["job"]).cancel()


def lines_that_name(key: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    pattern = re.compile(rf"\bThe key {re.escape(key)} (held|holds) ")
    return [record.getMessage() for record in caplog.records if pattern.search(record.getMessage())]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_key_of_the_wrong_type_costs_itself(
    connection: Redis, caplog: pytest.LogCaptureFixture, template: str
) -> None:
    caplog.set_level(logging.INFO, logger="rq.worker")
    with working(connection) as thread:
        for name in ("queue", "worker", "job", "execution", "batch") if HOLE in template else ("",):
            victim = Victim(connection)
            key = template.replace(HOLE, victim.names.get(name, ""))
            is_used = connection.exists(key) or key in kinds_for_worker(WORKER, [QUEUE, "other"])

            put_wrong_type(connection, template, key)
            for batch in neighbours(connection):
                batch.wait(DEADLINE_S)
            victim.end(connection)

            if is_used:
                wait_until(lambda key=key: lines_that_name(key, caplog) or not thread.is_alive(), f"a word about {key}")
            assert thread.is_alive()
            assert len(lines_that_name(key, caplog)) <= 1


def test_the_sources_name_every_key_that_a_run_leaves_in_redis(connection: Redis) -> None:
    patterns = [re.compile(re.escape(template).replace(re.escape(HOLE), ".+")) for template in TEMPLATES]
    connection.set("mlxq:batches", "wrong")
    with working(connection):
        victim = Victim(connection)
        during = connection.keys("*")
        for batch in neighbours(connection):
            batch.wait(DEADLINE_S)
        victim.end(connection)
        wait_until(lambda: victim.batch.counts().is_done, "the end of the victim")
        found = {key.decode() for key in [*during, *connection.keys("*")]}

    assert [key for key in sorted(found) if not any(pattern.fullmatch(key) for pattern in patterns)] == []
    assert len(found) > 15


@pytest.mark.parametrize("key", kinds_for_worker(WORKER, [QUEUE, "other"]))
def test_a_worker_starts_over_a_key_of_the_wrong_type(
    connection: Redis, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    caplog.set_level(logging.INFO, logger="rq.worker")
    connection.set(key, "a stranger's")

    with working(connection):
        for batch in neighbours(connection):
            batch.wait(DEADLINE_S)
        wait_until(lambda: lines_that_name(key, caplog), f"a word about {key}")

    assert connection.get(keys.moved(key)) == b"a stranger's", "moved, not lost"
    assert len(lines_that_name(key, caplog)) == 1


@pytest.mark.parametrize(
    "key", ["rq:queue:mlxq", "rq:queues", "mlxq:batches", "mlxq:batch:b:jobs", "mlxq:batch:b:events"]
)
def test_a_producer_goes_on_over_a_key_of_the_wrong_type(
    connection: Redis, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    connection.set(key, "a stranger's")

    batch = Client(connection).submit([text_request("hello", custom_id="r0")], "b")

    assert connection.lrange("rq:queue:mlxq", 0, -1) == [batch.job_id("r0").encode()]
    assert (batch.counts().total, Client(connection).batch_ids()) == (1, ["b"])
    assert connection.get(keys.moved(key)) == b"a stranger's"
    assert len(lines_that_name(key, caplog)) == 1


@pytest.mark.parametrize("key", ["mlxq:batch:b", "mlxq:batch:b:jobs", "mlxq:batch:b:events"])
def test_a_batch_with_a_broken_key_says_which_to_whoever_collects_it(connection: Redis, key: str) -> None:
    batch = Client(connection).submit([text_request("hello", custom_id="r0")], "b")
    connection.delete(key)
    connection.set(key, "wrong")

    with pytest.raises(QueueError, match=rf"{key} holds a string where a \w+ belongs"):
        list(batch.as_completed(timeout_s=DEADLINE_S))


@pytest.mark.parametrize(
    "entry", [{"foo": "bar"}, {"job": "j"}, {"job": b"\xff", "status": "finished"}, {"status": "x"}]
)
def test_a_strangers_entry_among_the_events_of_a_batch_is_passed_over(
    connection: Redis, redis_url: str, entry: dict[str, str | bytes]
) -> None:
    with working(connection):
        batch = Client(connection).submit([text_request("hello", custom_id="r0")], "b", sealed=False)
        connection.xadd(keys.batch_events("b"), entry)
        batch.add([text_request("hello", custom_id="r1")])
        batch.seal()
        answers = {answer.custom_id for answer in batch.as_completed(timeout_s=DEADLINE_S)}

    assert answers >= {"r0", "r1"}
    assert batch.rate() > 0


def write_what_is_nobodys(connection: Redis) -> None:
    """Under every key of the right type that a worker reads: names that are none, and numbers that can't be."""
    names = ["", "x", "a:b:c", "two\nlines", "\x1b[31m", b"\xff:\xfe"]
    for key, kind in kinds_for_worker(WORKER, [QUEUE, "other"]).items():
        match kind:
            case "zset":
                connection.zadd(key, {name: number for number, name in enumerate(names)} | {"inf": float("inf")})
            case "set":
                connection.sadd(key, *names, "rq:worker:", "rq:worker:two\nlines", b"rq:worker:\xff")
            case "list":
                connection.rpush(key, *names)
    connection.hset("rq:worker:two\nlines", mapping={"pid": "x", "birth": "yesterday", "queues": b"\xff"})
    connection.hset(keys.pulse(QUEUE), mapping={"beat": "nan", "trusted_from": "inf", "refusals": "many"})
    connection.zadd(keys.excused(QUEUE), dict.fromkeys(names, 1.0))
    connection.zadd(keys.BATCHES, dict.fromkeys(names, 1.0))
    connection.hset(keys.batch("x"), mapping={"queue": b"\xff", "created": "nan", "total": "-1"})
    connection.hset(keys.BROKEN, mapping={"": "a b c", "two\nlines": "string hash moved", b"\xff": b"\xff"})


def test_what_is_nobodys_under_the_keys_of_a_worker_costs_nobody_anything(connection: Redis, redis_url: str) -> None:
    write_what_is_nobodys(connection)

    with working(connection):
        for batch in neighbours(connection):
            assert batch.wait(DEADLINE_S).num_finished == 3
        shown = CliRunner().invoke(main, ["status", "--url", redis_url])

    assert shown.exit_code == 0, shown.output
    assert "\x1b[31m" not in shown.output
