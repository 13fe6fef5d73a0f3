"""A batch that is enqueued and collected at once: how much of it is in Redis meanwhile, and what comes again."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from tests.support.fake_worker import FakeWorker, echo
from tests.support.file_runs import Files, go_on, prompt
from tests.support.redis_at import redis_at
from tests.support.waiting import DEADLINE_S, wait_until

from mlxq import keys
from mlxq.contract import Request
from mlxq.errors import BatchNotFound, QueueError
from mlxq.files.collection import collect
from mlxq.files.tally import Tally
from mlxq.queue import batch as batch_module
from mlxq.queue import client as client_module
from mlxq.queue.batch import Batch
from mlxq.queue.client import Client
from mlxq.queue.enqueuing.window import InflightWindow
from mlxq.requests.openai import ParsedLine
from mlxq.requests.submission import as_requests

WINDOW = 10


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with Client(redis_url) as client:
        yield client


class Producer:
    """A thread that adds requests through the window; `most` is how many of the batch Redis had at a time."""

    def __init__(self, url: str, batch: Batch, num_requests: int) -> None:
        self.most = 0
        self._batch = Client(url).open(batch.id)
        self._redis = redis_at(url)
        self._num_requests = num_requests
        self._thread = threading.Thread(target=self._add)

    def __enter__(self) -> Producer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def _add(self) -> None:
        self._batch.add(self._requests(), max_inflight=WINDOW)
        self._look()
        self._batch.seal()

    def _requests(self) -> Iterator[dict[str, Any]]:
        for number in range(self._num_requests):
            self._look()
            yield prompt(f"r{number}")

    def _look(self) -> None:
        self.most = max(self.most, int(self._redis.zcard(keys.batch_jobs(self._batch.id))))


def lines_of(*lengths: int) -> list[ParsedLine]:
    return list(as_requests([prompt(f"r{number}", "x" * length) for number, length in enumerate(lengths)], chat=False))


def test_a_window_takes_requests_in_parts_of_a_quarter_and_long_ones_in_smaller_parts() -> None:
    window = InflightWindow(100, max_bytes=4000)

    parts = list(window.parts(lines_of(*[1] * 30, 2000, *[600] * 3)))

    assert [len(part) for part in parts] == [25, 6, 2, 1]


def test_a_window_has_no_room_while_the_last_ones_that_were_added_are_too_long_together() -> None:
    window, one = InflightWindow(100, max_bytes=4000), lines_of(1)
    window.added(lines_of(*[1500] * 10))

    assert [window.has_room(one, num_inflight) for num_inflight in (0, 2, 3, 10)] == [True, True, False, False]
    window.added(lines_of(*[1] * 10))
    assert [window.has_room(one, num_inflight) for num_inflight in (10, 12, 13, 100)] == [True, True, False, False]


def test_one_request_that_is_longer_than_the_window_goes_in_alone() -> None:
    window = InflightWindow(100, max_bytes=4000)
    [part, last] = window.parts(lines_of(9000, 1))

    assert (len(part), window.has_room(part, 0)) == (1, True)
    window.added(part)
    assert (window.has_room(last, 1), window.has_room(last, 0)) == (False, True)


@pytest.mark.parametrize("how", ["submit", "run"])
def test_long_requests_wait_for_room_though_they_are_few(
    client: Client, redis_url: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    window = partial(InflightWindow, max_bytes=40_000)
    monkeypatch.setattr(batch_module, "InflightWindow", window)
    monkeypatch.setattr(client_module, "InflightWindow", window)
    has_waited, lengths = threading.Event(), list[int]()
    for module in (batch_module, client_module):  # which both do so once there is no room
        monkeypatch.setattr(module, "warn_if_no_worker", lambda *_: has_waited.set())

    def answer(request: Request, job_id: str) -> dict[str, Any]:
        assert has_waited.wait(DEADLINE_S)
        return echo(request, job_id)

    def produced() -> Iterator[dict[str, Any]]:
        for number in range(60):
            lengths.append(client.queue_length())
            yield prompt(f"r{number}", "x" * 10_000)

    with FakeWorker(redis_url, answer):
        if how == "run":
            answers = list(client.run(produced(), max_inflight=50))
        else:
            batch = client.submit(produced(), "b1", max_inflight=50)
            answers = list(batch.as_completed(DEADLINE_S))

    assert len(answers) == 60
    assert max(lengths) <= 5, "four of them are 40 kB, and a part is one"


def test_what_a_collector_has_not_deleted_is_part_of_the_window(client: Client, redis_url: str, files: Files) -> None:
    # given a batch whose collector was there, and is away
    batch = client.submit([prompt("first")], "b1", sealed=False)
    batch.begin_collection()

    # when more is added than the window has room for, all of which a worker answers
    with FakeWorker(redis_url), Producer(redis_url, batch, 3 * WINDOW) as producer:
        wait_until(lambda: batch.counts().num_ended > WINDOW - 2, "a window full of answers")
        collect(batch, files.output, files.errors, on_turn=go_on, follow=True, delete=True)

    # then Redis never had more, and the file has all
    assert producer.most <= WINDOW
    assert sorted(files.answers()) == sorted(["first", *(f"r{i}" for i in range(3 * WINDOW))])


def test_a_window_without_a_collector_is_one_of_requests_without_an_answer(client: Client, redis_url: str) -> None:
    batch = client.submit([prompt("first")], "b1", sealed=False)
    with FakeWorker(redis_url), Producer(redis_url, batch, 3 * WINDOW) as producer:
        counts = batch.wait(DEADLINE_S)
    assert (counts.num_finished, producer.most) == (3 * WINDOW + 1, 3 * WINDOW + 1)


def test_a_producer_says_that_it_waits_for_the_collector(
    client: Client, redis_url: str, files: Files, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(batch_module, "COLLECTOR_S", 0.0)
    caplog.set_level(logging.WARNING, "mlxq")
    batch = client.submit([prompt("first")], "b1", sealed=False)
    batch.begin_collection()
    with FakeWorker(redis_url), Producer(redis_url, batch, 3 * WINDOW):
        wait_until(lambda: "mlxq collect b1 --follow --delete" in caplog.text, "a word about the collector")
        collect(batch, files.output, files.errors, on_turn=go_on, follow=True, delete=True)
    assert re.search(r"\d+ answers of batch 'b1' are yet to be collected; waiting for that: mlxq collect", caplog.text)


def test_a_producer_of_a_cancelled_batch_waits_for_nobody(client: Client) -> None:
    batch = client.submit([prompt(f"r{i}") for i in range(WINDOW)], "b1", sealed=False)
    batch.begin_collection()
    batch.cancel()
    with pytest.raises(QueueError, match="batch 'b1' is cancelled"):
        batch.add([prompt("more")], max_inflight=WINDOW)


def test_a_batch_that_is_gone_has_no_collector(client: Client, connection: Redis) -> None:
    with pytest.raises(BatchNotFound, match="there is no batch 'b1'"):
        client.open("b1").begin_collection()
    assert connection.keys("mlxq:*") == []


@pytest.mark.parametrize("text", ["Say hello", "Say it differently"])
def test_what_was_deleted_and_is_asked_again_is_in_the_file_once(
    client: Client, connection: Redis, redis_url: str, files: Files, text: str
) -> None:
    # given a collector that has deleted what it wrote, while the producer broke off
    batch = client.submit([prompt("a"), prompt("b")], "b1", sealed=False)
    has_come_back = False

    def complete(tally: Tally) -> bool:
        nonlocal has_come_back
        if tally.succeeded == 2 and not has_come_back and not connection.exists(keys.batch_jobs("b1")):
            client.submit([prompt("a", text), prompt("b"), prompt("c")], "b1")
            has_come_back = True
        return True

    # when the producer completes the batch
    with FakeWorker(redis_url):
        summary = collect(batch, files.output, files.errors, on_turn=complete, follow=True, delete=True)

    # then each id is there once, with its newest answer
    assert has_come_back
    assert not summary.interrupted
    assert sorted(files.answers()) == ["a", "b", "c"]
    assert files.output.read_text().count(f'"text":"{text}"') == (3 if text == "Say hello" else 1)


def test_jobs_that_end_while_they_are_counted_are_not_looked_for(
    client: Client, connection: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a job that ends just before the queue is looked at
    batch = client.submit([prompt("a")], "b1")
    count_open = batch_module.num_open

    def end_first(*args: Any) -> int:
        with FakeWorker(redis_url):
            wait_until(lambda: connection.xlen(keys.batch_events("b1")), "the end")
        return count_open(*args)

    monkeypatch.setattr(batch_module, "num_open", end_first)
    connection.config_resetstat()
    assert batch.counts().num_ended == 1
    assert "cmdstat_xread" not in connection.info("commandstats"), "no event is read when nothing is missed"
