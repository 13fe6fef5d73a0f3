"""What Python programs hand in and get back: plain requests, back-pressure, answers by name, and an empty Redis."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from tests.support.fake_worker import FakeWorker, echo, refuse
from tests.support.waiting import DEADLINE_S

from mlxq import keys
from mlxq.aio.client import AsyncClient
from mlxq.contract import Request, StopDetails, Usage
from mlxq.errors import BatchNotFound, ConfigError, QueueError, RequestError
from mlxq.queue.client import Client
from mlxq.requests.build import request
from mlxq.results.answer import Answer, AnswerError


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with Client(redis_url) as client:
        yield client


def numbered(count: int) -> Iterator[dict[str, Any]]:
    return ({"custom_id": f"r{i}", "prompt": f"prompt {i}"} for i in range(count))


def texts(answers: Iterable[Answer]) -> dict[str, str | None]:
    return {answer.custom_id: answer.text for answer in answers}


# --- What goes in ---------------------------------------------------------------------------------------------


def test_requests_may_be_objects_of_any_line_format_texts_and_built_ones(client: Client, redis_url: str) -> None:
    batch_line = {
        "custom_id": "openai",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
    }
    items = [batch_line, {"id": 17, "prompt": "seventeen"}, "only text", request(prompt="built", custom_id="b")]
    with FakeWorker(redis_url):
        answers = texts(client.submit(items).as_completed(DEADLINE_S))
    assert sorted(filter(None, answers.values())) == ["built", "hi", "only text", "seventeen"]
    assert {"openai", "17", "b"} < answers.keys()


def test_texts_may_be_chats(client: Client, redis_url: str) -> None:
    seen = []

    def answer(request: Request, job_id: str) -> dict[str, Any]:
        seen.append(request.messages)
        return echo(request, job_id)

    with FakeWorker(redis_url, answer):
        client.submit(["hello"], chat=True).wait(DEADLINE_S)
    assert seen == [({"role": "user", "content": "hello"},)]


@pytest.mark.parametrize(
    ("bad", "param"),
    [({"prompt": "x", "temprature": 0}, "temprature"), ({"prompt": 7}, "prompt"), ("", "prompt"), (None, None)],
)
def test_a_bad_request_is_named_by_its_number_and_nothing_of_a_list_is_enqueued(
    client: Client, bad: Any, param: str | None
) -> None:
    with pytest.raises(RequestError, match="request 2: ") as caught:
        client.submit(["good", bad])
    assert caught.value.param == param
    assert client.queue_length() == 0


def test_a_request_that_the_batch_has_with_other_content_is_not_lost_without_a_word(client: Client) -> None:
    batch = client.submit([{"id": "a", "prompt": "one", "temperature": 0}], "b1", sealed=False)
    again = batch.add([{"id": "a", "prompt": "one", "temperature": 0.0, "user": "me"}])
    with pytest.raises(RequestError, match="batch 'b1' has a request with the custom_id 'a' already") as caught:
        batch.add([{"id": "a", "prompt": "two"}, {"id": "b", "prompt": "x"}])
    assert (again, caught.value.code, batch.counts().total) == (0, "duplicate_custom_id", 1)


@pytest.mark.parametrize("one", ["a prompt", {"prompt": "x"}, request(prompt="x")])
def test_a_single_request_is_not_taken_for_several(client: Client, one: Any) -> None:
    with pytest.raises(ConfigError, match="put a single one into a list"):
        client.submit(one)


def test_an_endless_source_is_read_no_further_than_answers_come(client: Client, redis_url: str) -> None:
    # given a source that tells how far it was read
    num_read = 0
    most_ahead = 0
    batch = client.open("b1")

    def source() -> Iterator[str]:
        nonlocal num_read, most_ahead
        for number in range(60):
            num_read += 1
            if number:
                most_ahead = max(most_ahead, num_read - client.batch("b1").counts().num_ended if number > 10 else 0)
            yield f"prompt {number}"

    # when
    with FakeWorker(redis_url):
        batch.add(source(), max_inflight=10)
        batch.seal()
        counts = batch.wait(DEADLINE_S)

    # then
    assert (counts.total, counts.num_finished) == (60, 60)
    assert most_ahead <= 20, "ten that wait for an answer, and ten that wait for room"


@pytest.mark.parametrize("batch_id", ["", "-x", "--help", "a b", "ä", "a" * 101, "a\n"])
def test_a_batch_id_that_a_command_could_not_be_given_is_refused(client: Client, batch_id: str) -> None:
    with pytest.raises(ConfigError, match="must be 1 to 100 letters"):
        client.submit(["x"], batch_id)


# --- What comes out -------------------------------------------------------------------------------------------


def test_an_answer_has_its_parts_by_name(client: Client, redis_url: str) -> None:
    with FakeWorker(redis_url):
        [answer] = client.submit([{"custom_id": "a", "prompt": "hello"}]).as_completed(DEADLINE_S)
    assert (answer.text, answer.texts, answer.finish_reason) == ("hello", ("hello",), "stop")
    assert answer.stop_details == StopDetails(type="eos_token", token_id=2, token="<end>", token_index=2)
    assert answer.usage == Usage(prompt_tokens=5, completion_tokens=3)
    assert (answer.error, answer.is_success, answer.is_complete) == (None, True, True)


def test_an_answer_that_failed_has_an_error_and_nothing_else(client: Client, redis_url: str) -> None:
    with FakeWorker(redis_url, refuse):
        [answer] = client.submit(["hello"]).as_completed(DEADLINE_S)
    assert answer.error == AnswerError("prompt_too_long", "too long")
    assert (answer.text, answer.texts, answer.finish_reason, answer.stop_details, answer.usage) == (
        None,
        (),
        None,
        None,
        None,
    )
    assert (answer.is_success, answer.is_complete) == (False, False)


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"response": None, "error": {"code": 5}},
        {"response": {"status_code": 200, "body": {"choices": [{"stop_details": {"kind": 1}, "message": []}]}}},
        {"response": {"status_code": 200, "body": {"choices": [{"stop_details": {"type": "new", "more": 1}}]}}},
    ],
)
def test_parts_of_lines_that_other_programs_wrote_raise_nothing(line: dict[str, Any]) -> None:
    answer = Answer("j", "a", "finished", {"custom_id": "a", **line}, "0-1")
    assert (answer.text, answer.finish_reason) == (None, None)
    assert answer.stop_details in (None, StopDetails(type="new"))  # type: ignore[arg-type]
    assert (answer.error is None) == answer.is_success


def test_an_answer_that_was_cut_off_is_one_but_not_complete(client: Client, redis_url: str) -> None:
    def cut(request: Request, job_id: str) -> dict[str, Any]:
        line = echo(request, job_id)
        line["response"]["body"]["choices"][0]["stop_details"] = {"type": "deadline"}
        return line

    with FakeWorker(redis_url, cut):
        [answer] = client.submit(["hello"]).as_completed(DEADLINE_S)
    assert (answer.text, answer.is_success, answer.is_complete, answer.error) == ("hello", True, False, None)


def test_coroutines_iterate_while_others_run(client: Client, redis_url: str) -> None:
    async def collect() -> tuple[list[str], int]:
        found, num_ticks = [], 0

        async def tick() -> None:
            nonlocal num_ticks
            while True:
                num_ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        async for answer in client.submit(numbered(20)):
            found.append(answer.custom_id)
        ticking.cancel()
        return found, num_ticks

    with FakeWorker(redis_url):
        found, num_ticks = asyncio.run(collect())
    assert sorted(found) == sorted(f"r{i}" for i in range(20))
    assert num_ticks > 20, "the loop went on while it waited"


def test_coroutines_hear_of_a_timeout(client: Client) -> None:
    async def collect() -> None:
        async for _ in client.submit(["x"]).as_completed(0.2):
            pass

    with pytest.raises(TimeoutError):
        asyncio.run(collect())


@pytest.mark.parametrize("num_workers", [0, 1])
def test_who_waits_is_warned_once_if_no_worker_serves_the_queue(
    client: Client, caplog: pytest.LogCaptureFixture, num_workers: int
) -> None:
    if num_workers:
        client.redis.sadd("rq:workers:mlxq", "rq:worker:w")
        client.redis.hset("rq:worker:w", "name", "w")
    batch = client.submit(["x"])
    with caplog.at_level(logging.WARNING, "mlxq"), pytest.raises(TimeoutError):
        batch.wait(timeout_s=2.5)
    assert ["no worker serves queue 'mlxq'" in record.message for record in caplog.records] == [True] * (
        1 - num_workers
    )


# --- An empty Redis -------------------------------------------------------------------------------------------


def keys_of_jobs(redis: Redis) -> list[bytes]:
    return [key for key in redis.scan_iter() if key.startswith((b"rq:job:", b"rq:results:"))]


def test_answers_can_be_forgotten_as_they_are_read(client: Client, redis_url: str) -> None:
    with FakeWorker(redis_url):
        batch = client.submit(numbered(30))
        batch.wait(DEADLINE_S)
        before = len(keys_of_jobs(client.redis))
        answers = texts(batch.as_completed(DEADLINE_S, forget=True))
    assert (before, len(answers)) == (60, 30)
    assert keys_of_jobs(client.redis) == []
    assert batch.counts().num_finished == 30, "its counts stay"
    assert list(batch.as_completed(DEADLINE_S)) == []


def test_who_breaks_off_while_answers_are_forgotten_loses_none(client: Client, redis_url: str) -> None:
    with FakeWorker(redis_url):
        batch = client.submit(numbered(10))
        batch.wait(DEADLINE_S)
    first = []
    answers = batch.as_completed(DEADLINE_S, forget=True)
    for answer in answers:
        first.append(answer.custom_id)
        if len(first) == 4:
            break
    del answers
    rest = texts(batch.as_completed(DEADLINE_S, forget=True))
    assert len(keys_of_jobs(client.redis)) == 0
    assert {*first, *rest} == {f"r{i}" for i in range(10)}
    assert len(first) + len(rest) in (10, 11), "the last one may be told again"


def test_deleting_a_batch_leaves_nothing_of_it_and_all_of_others(client: Client, redis_url: str) -> None:
    with FakeWorker(redis_url):
        batch, other = client.submit(numbered(keys.CHUNK + 3), "gone"), client.submit(numbered(3), "gone-not")
        for each in (batch, other):
            each.wait(DEADLINE_S)
    batch.delete()
    assert client.batch_ids() == ["gone-not"]
    assert [key for key in client.redis.scan_iter() if b"gone" in key and b"gone-not" not in key] == []
    assert len(texts(other.as_completed(DEADLINE_S))) == 3
    with pytest.raises(BatchNotFound):
        batch.delete()


def test_a_batch_with_requests_that_wait_or_run_is_not_deleted(client: Client) -> None:
    batch = client.submit(numbered(2), "b1")
    with pytest.raises(QueueError, match="2 requests that wait or run; cancel it first"):
        batch.delete()
    assert client.queue_length() == 2
    batch.cancel()
    batch.delete()
    assert client.batch_ids() == []


def test_a_batch_that_was_done_before_it_was_cancelled_stays_done(client: Client, redis_url: str) -> None:
    with FakeWorker(redis_url):
        batch = client.submit(numbered(2), "b1")
        batch.wait(DEADLINE_S)
    assert batch.cancel() == 0
    counts = batch.counts()
    assert (counts.cancelled, counts.is_done, counts.num_finished) == (False, True, 2)


# --- Requests in, answers out -----------------------------------------------------------------------------------


def test_a_run_reads_requests_as_they_are_answered_and_leaves_nothing(client: Client, redis_url: str) -> None:
    read, most_ahead, answered = 0, 0, set()

    def produced() -> Iterator[dict[str, Any]]:
        nonlocal read
        for line in numbered(200):
            read += 1
            yield line

    with FakeWorker(redis_url):
        for answer in client.run(produced(), max_inflight=20):
            most_ahead = max(most_ahead, read - len(answered))
            answered.add(answer.custom_id)
    assert len(answered) == 200
    assert most_ahead <= 20 + 5 + 20  # the window, the part that waits for room, and answers that are not read yet
    assert client.redis.keys("rq:job:*") == client.redis.keys("mlxq:batch*") == []


def test_a_run_that_is_broken_off_or_meets_a_wrong_request_cancels_the_rest(client: Client, redis_url: str) -> None:
    with FakeWorker(redis_url):
        answers = client.run(numbered(50), max_inflight=4)
        next(answers)
        answers.close()
        with pytest.raises(RequestError, match="request 9"):
            list(client.run(iter([*numbered(8), {"prompt": 5}]), max_inflight=4))
    assert all(client.batch(batch_id).counts().cancelled for batch_id in client.batch_ids())
    assert client.queue_length() == 0
    with pytest.raises(ConfigError, match="max_inflight must be at least 1"):
        next(client.run(numbered(1), max_inflight=0))


def test_what_a_generator_raises_at_once_is_what_its_reader_hears(client: Client) -> None:
    def produced() -> Iterator[str]:
        raise ValueError("mine")
        yield ""

    with pytest.raises(ValueError, match="mine"):
        list(client.run(produced()))
    assert client.batch_ids() == []


def test_an_id_may_be_a_number_and_several_are_no_text(client: Client, redis_url: str) -> None:
    batch = client.submit([{"id": 7, "prompt": "x"}])
    with FakeWorker(redis_url):
        assert [answer.custom_id for answer in batch] == ["7"]
    assert (found := batch.answer(7)) is not None
    assert batch.answers([7]) == {"7": found}
    with pytest.raises(ConfigError, match="several ids are expected"):
        batch.answers("7")


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (lambda client: client.submit(["x"], max_inflight=0), "max_inflight must be at least 1, not 0"),
        (lambda client: client.run(["x"], max_inflight=0), "max_inflight must be at least 1, not 0"),
        (lambda client: client.submit("x"), "several requests are expected"),
        (lambda client: client.in_queue(""), "queue must be the name of an RQ queue"),
        (lambda client: Client(None), "redis must be a URL or a connection of the package redis, not NoneType"),
        (lambda client: Client(AsyncRedis()), "redis.asyncio is for an AsyncClient"),
        (lambda client: AsyncClient(client.redis), "redis must be a URL or a connection of redis.asyncio, not Redis"),
        (lambda client: Client("localhost:6379"), "'localhost:6379' is not a Redis URL"),
    ],
)
def test_a_slip_is_a_sentence_at_once(client: Client, mistake: Callable[[Client], object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        mistake(client)


def test_answers_are_found_by_the_ids_of_their_requests(client: Client, redis_url: str) -> None:
    batch = client.submit(numbered(3))
    assert batch.answer("r0") is None
    assert batch.cancel_job(batch.job_id("r2"))
    with FakeWorker(redis_url):
        batch.wait(DEADLINE_S)
    answer = batch.answer("r1")
    assert answer is not None
    assert (answer.custom_id, answer.text) == ("r1", "prompt 1")
    found = batch.answers(["r2", "r0", "nobody", "r0"])
    assert {custom_id: each.status for custom_id, each in found.items()} == {"r2": "cancelled", "r0": "finished"}
