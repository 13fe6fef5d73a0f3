"""Live requests of `mlxq serve` by OpenAI's own client: whole and streamed, refused, given up, and hung up on."""

from __future__ import annotations

import json
import socket
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import openai
import pytest
from openai import OpenAI
from redis import Redis
from tests.bench.live import measure
from tests.support.echo_engine import EchoWorker
from tests.support.redis_at import redis_at
from tests.support.redis_fixture import MortalRedis
from tests.support.served import begun, chat_line, ended, lines_of, openai_client, service
from tests.support.waiting import DEADLINE_S, wait_until

from mlxq import keys
from mlxq.serve.api.access import KeyRing
from mlxq.serve.api.service import Limits
from mlxq.serve.live.desk import WaitLimits
from mlxq_worker.config import EngineConfig, WorkerConfig

ENDLESS: dict[str, Any] = {"model": "echo", "prompt": "word ", "max_tokens": 10**6, "extra_body": {"ignore_eos": True}}
"""Longer than anybody waits."""
KEYS = KeyRing({"sk-0123456789abcdef": "alice", "sk-fedcba9876543210": "bob"})


@contextmanager
def working(redis_url: str, *, width: int = 8, step_s: float = 0.0005) -> Iterator[EchoWorker]:
    """A worker at work in a thread, that has said what it serves."""
    config = WorkerConfig(model="echo", lease_s=20, engine=EngineConfig(max_num_seqs=width))
    with redis_at(redis_url) as connection:
        worker = EchoWorker(
            [keys.DEFAULT_QUEUE], name="echo-1", connection=connection, serializer="json", config=config
        )
        worker.step_s = step_s
        thread = threading.Thread(target=worker.work)
        thread.start()
        try:
            wait_until(lambda: connection.hget("rq:worker:echo-1", "mlxq_model") == b"echo", "the worker to be ready")
            yield worker
        finally:
            for _ in range(2):
                worker.request_stop(15, None)
            thread.join(DEADLINE_S)
            assert not thread.is_alive()


@pytest.fixture
def worker(redis_url: str) -> Iterator[EchoWorker]:
    with working(redis_url) as worker:
        yield worker


@pytest.fixture
def client(redis_url: str, tmp_path: Path, worker: EchoWorker) -> Iterator[OpenAI]:
    with service(redis_url, tmp_path / "data") as url:
        yield openai_client(url)


def said(content: str) -> list[Any]:
    return [{"role": "system", "content": "Repeat."}, {"role": "user", "content": content}]


def cancelled(worker: EchoWorker) -> int:
    return worker.engine.num_cancelled if worker.engine else 0


def test_a_chat_and_a_completion_are_answered_while_their_client_waits(client: OpenAI, redis_url: str) -> None:
    chat = client.chat.completions.create(model="echo", messages=said("Hallo 🙂, wie geht's?"), n=2)
    completion = client.completions.create(model="echo", prompt="One, two", stop=", t")

    assert [choice.message.content for choice in chat.choices] == ["Hallo 🙂, wie geht's?"] * 2
    assert (completion.choices[0].text, completion.choices[0].finish_reason) == ("One", "stop")
    assert completion.usage is not None
    assert [model.id for model in client.models.list()] == ["echo"]
    assert client.models.retrieve("echo").id == "echo"
    with redis_at(redis_url) as connection:
        wait_until(lambda: not [key for key in connection.keys("*") if b"live-" in key], "all to be forgotten")


def test_a_stream_comes_in_openais_chunks(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="echo", messages=said("Hallo 🙂"), stream=True, stream_options={"include_usage": True}
    )

    *chunks, usage = stream

    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hallo 🙂"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in [*chunks, usage]}) == 1
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == 11


def test_an_answer_is_told_while_it_grows(redis_url: str, tmp_path: Path) -> None:
    with working(redis_url, step_s=0.01) as worker, service(redis_url, tmp_path / "data") as url:
        chunks = openai_client(url).completions.create(**ENDLESS, stream=True)

        texts = [next(iter(chunks)).choices[0].text for _ in range(3)]

        assert all(texts)
        assert "".join(texts) == ("word " * 100)[: len("".join(texts))]
        chunks.close()
        wait_until(lambda: cancelled(worker), "the row to be cancelled")


def test_several_answers_are_told_side_by_side(client: OpenAI) -> None:
    texts = ["", ""]
    for chunk in client.completions.create(model="echo", prompt="side by side", n=2, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text

    assert texts == ["side by side"] * 2


def test_chunks_join_to_the_answer_of_a_batch_line(client: OpenAI) -> None:
    random = Random(18)
    alphabet = ["a", "b", "é", "日本", "🙂", "\n", " ", "STOP", "ST"]
    asked = []
    for _ in range(40):
        text = "".join(random.choices(alphabet, k=random.randint(1, 30)))
        start = random.randrange(len(text))
        asked.append((text, [text[start : start + random.randint(1, 3)], "never"]))
    batch = ended(client, begun(client, [chat_line(str(i), *one[:1], stop=one[1]) for i, one in enumerate(asked)]).id)
    lines = lines_of(client, batch.output_file_id)
    answers = {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}

    for index, (text, stop) in enumerate(asked):
        messages: Any = [{"role": "user", "content": text}]
        stream = client.chat.completions.create(model="echo", messages=messages, stop=stop, stream=True)
        told = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert told.encode() == answers[str(index)].encode()


REFUSALS: list[tuple[dict[str, Any], int, str, str]] = [
    ({"temprature": 1}, 400, "temprature", "unknown_field"),
    ({"temperature": "hot"}, 400, "temperature", "invalid_type"),
    ({"messages": []}, 400, "messages", "out_of_range"),
    ({"messages": None}, 400, "messages", "missing_field"),
    ({"model": "gpt-4o"}, 404, "model", "model_not_found"),
    ({"n": 17}, 400, "n", "out_of_range"),
    ({"stream": "yes"}, 400, "stream", "invalid_type"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options", "invalid_value"),
    ({"stream": True, "stream_options": []}, 400, "stream_options", "invalid_type"),
    ({"stream": True, "stream_options": {"usage": True}}, 400, "stream_options.usage", "unknown_field"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, 400, "stream_options.include_usage", "invalid_type"),
    ({"stream": True, "use_beam_search": True, "n": 2}, 400, "stream", "unsupported"),
]


def test_what_is_wrong_is_named_in_openais_shape(client: OpenAI) -> None:
    for body, *expected in REFUSALS:
        with pytest.raises(openai.APIStatusError) as error:
            client.chat.completions.create(model="echo", messages=said("Hi"), extra_body=body)

        assert [error.value.status_code, error.value.param, error.value.code] == expected


def test_what_only_the_worker_can_tell_is_refused_with_a_status_of_its_own(redis_url: str, tmp_path: Path) -> None:
    with service(redis_url, tmp_path / "data") as url, ending_live_jobs(redis_url, refused):
        for is_streamed in (False, True):
            with pytest.raises(openai.BadRequestError) as error:
                openai_client(url).completions.create(model="m", prompt="too long", stream=is_streamed)
            assert (error.value.param, error.value.code) == ("prompt", "prompt_too_long")


def test_a_hang_up_cancels_the_row(redis_url: str, tmp_path: Path) -> None:
    with working(redis_url, step_s=0.005) as worker, service(redis_url, tmp_path / "data") as url:
        host, _, port = url.removeprefix("http://").partition(":")
        body = json.dumps({"model": "echo", "prompt": "word ", "max_tokens": 10**6, "ignore_eos": True})
        names = {"Host": host, "Content-Type": "application/json", "Content-Length": len(body)}
        head = "".join(f"{name}: {value}\r\n" for name, value in names.items())
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"POST /v1/completions HTTP/1.1\r\n{head}\r\n{body}".encode())
            wait_until(lambda: worker.engine and worker.engine.entered, "the row to be decoded")

        wait_until(lambda: cancelled(worker), "the row to be cancelled")


def test_a_key_has_so_many_requests_at_a_time_and_another_key_its_own(redis_url: str, tmp_path: Path) -> None:
    with (
        working(redis_url, step_s=0.005),
        service(redis_url, tmp_path / "data", keys=KEYS, limits=Limits(max_live=2)) as url,
    ):
        alice, bob = (openai_client(url, key) for key in ("sk-0123456789abcdef", "sk-fedcba9876543210"))
        open_ones = [alice.completions.create(**ENDLESS, stream=True) for _ in range(2)]

        with pytest.raises(openai.RateLimitError) as error:
            alice.completions.create(model="echo", prompt="Hi")
        assert error.value.response.headers["Retry-After"] == "1"
        assert bob.completions.create(model="echo", prompt="Hi").choices[0].text == "Hi"

        open_ones[0].close()
        wait_until(lambda: tries(lambda: alice.completions.create(model="echo", prompt="Hi")), "a place to be free")
        open_ones[1].close()


def tries(call: Callable[[], object]) -> bool:
    try:
        call()
    except openai.RateLimitError:
        return False
    return True


def test_without_a_worker_a_request_is_given_up_after_a_stated_time(redis_url: str, tmp_path: Path) -> None:
    limits = WaitLimits(no_worker_s=0.1)
    with service(redis_url, tmp_path / "data", wait_limits=limits) as url, redis_at(redis_url) as connection:
        for is_streamed in (False, True):
            with pytest.raises(openai.InternalServerError) as error:
                openai_client(url).completions.create(model="any", prompt="Hi", stream=is_streamed)

            assert (error.value.status_code, error.value.code) == (503, "no_worker")
            assert error.value.response.headers["Retry-After"] == "1"
        wait_until(lambda: not connection.exists(keys.live(keys.DEFAULT_QUEUE)), "the requests to be gone")


def test_a_line_that_does_not_move_is_given_up_after_a_stated_time(redis_url: str, tmp_path: Path) -> None:
    limits = WaitLimits(in_line_s=0.1)
    with working(redis_url), service(redis_url, tmp_path / "data", wait_limits=limits) as url:
        with redis_at(redis_url) as connection:
            connection.set("rq:suspended", 1)

            with pytest.raises(openai.InternalServerError) as error:
                openai_client(url).completions.create(model="echo", prompt="Hi")

        assert (error.value.status_code, error.value.code) == (503, "overloaded")


def test_a_request_that_somebody_deletes_is_no_longer_waited_for(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxq.serve.live.desk.LOOK_S", 0.01)
    with (
        service(redis_url, tmp_path / "data") as url,
        ending_live_jobs(redis_url, deleted),
        pytest.raises(openai.InternalServerError) as error,
    ):
        openai_client(url).completions.create(model="m", prompt="Hi")

    assert (error.value.status_code, error.value.code) == (500, "job_lost")


def test_without_redis_a_request_is_told_to_come_again(mortal_redis: MortalRedis, tmp_path: Path) -> None:
    limits = WaitLimits(no_redis_s=0.1)
    with service(mortal_redis.url, tmp_path / "data", wait_limits=limits) as url:
        client, failures = openai_client(url), []

        def ask() -> None:
            try:
                client.completions.create(model="m", prompt="Hi")
            except openai.APIStatusError as error:
                failures.append((error.status_code, error.code))

        waiting = threading.Thread(target=ask)
        waiting.start()
        with redis_at(mortal_redis.url) as connection:
            wait_until(lambda: connection.exists(keys.live(keys.DEFAULT_QUEUE)), "the request to be in line")
        mortal_redis.kill()
        waiting.join(DEADLINE_S)
        ask()

        assert failures == [(503, "unavailable")] * 2


def test_a_worker_that_fails_in_the_middle_of_a_stream_ends_it_with_an_error(redis_url: str, tmp_path: Path) -> None:
    with service(redis_url, tmp_path / "data") as url, ending_live_jobs(redis_url, failed_after_a_piece):
        stream = openai_client(url).completions.create(model="m", prompt="Hi", stream=True)

        with pytest.raises(openai.APIError, match="the worker died") as error:
            list(stream)

    assert error.value.code == "worker_crashed"


def test_calls_and_reasoning_come_whole_where_only_the_end_tells_them_apart(redis_url: str, tmp_path: Path) -> None:
    with service(redis_url, tmp_path / "data") as url, ending_live_jobs(redis_url, called):
        stream = openai_client(url).chat.completions.create(model="m", messages=said("Weather?"), stream=True)

        chunks = [chunk.choices[0] for chunk in stream]

    [calls] = [chunk.delta.tool_calls for chunk in chunks if chunk.delta.tool_calls]
    assert [(call.index, call.id, call.function and call.function.arguments) for call in calls] == [
        (0, "call_1", '{"city": "Paris"}'),
        (1, "call_2", '{"city": "Rome"}'),
    ]
    assert chunks[-1].finish_reason == "tool_calls"
    assert [getattr(chunk.delta, "reasoning_content", None) for chunk in chunks if chunk.delta.model_extra] == ["Hm."]


def test_many_live_requests_beside_a_batch_wait_no_longer_than_the_policy_says() -> None:
    """The benchmark's figures, for fewer of them; they are steps and rows, not seconds."""
    figures = measure(400, 40, 8)

    assert figures["all_right"]
    assert figures["waits_within_bound"]


# --- In place of a worker: how a live job ends, written as its worker would -------------------------------------------


@contextmanager
def ending_live_jobs(redis_url: str, end: Callable[[Redis, str], dict[str, Any] | None]) -> Iterator[None]:
    """Take live jobs while the block runs, and give each the output line that `end` gives."""
    is_over = threading.Event()

    def work() -> None:
        with redis_at(redis_url) as connection:
            while not is_over.wait(0.005):
                job = connection.lpop(keys.live(keys.DEFAULT_QUEUE))
                if isinstance(job, bytes) and (line := end(connection, job.decode())) is not None:
                    value = encoded(line)
                    connection.hset(f"rq:job:{job.decode()}", "status", "finished")
                    connection.xadd(f"rq:results:{job.decode()}", {"type": 1, "return_value": value})

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def encoded(line: dict[str, Any]) -> bytes:
    return b64encode(json.dumps(line).encode())


def output_line(job_id: str, **parts: Any) -> dict[str, Any]:
    return {"id": job_id, "custom_id": job_id, "response": None, "error": None, **parts}


def refused(connection: Redis, job_id: str) -> dict[str, Any]:
    error = {"message": "too long", "type": "invalid_request_error", "param": "prompt", "code": "prompt_too_long"}
    return output_line(job_id, response={"status_code": 400, "request_id": job_id, "body": {"error": error}})


def deleted(connection: Redis, job_id: str) -> None:
    connection.delete(f"rq:job:{job_id}")


def failed_after_a_piece(connection: Redis, job_id: str) -> dict[str, Any]:
    connection.xadd(keys.stream(job_id), {"execution": "e", "pieces": '[[0,"content",0,"Hel"]]'})
    threading.Event().wait(0.3)  # for the piece to be told first, which it need not be
    return output_line(job_id, error={"code": "worker_crashed", "message": "the worker died"})


def called(connection: Redis, job_id: str) -> dict[str, Any]:
    calls = [
        {"id": f"call_{i}", "type": "function", "function": {"name": "weather", "arguments": f'{{"city": "{city}"}}'}}
        for i, city in ((1, "Paris"), (2, "Rome"))
    ]
    message = {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": calls}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls"}
    body = {"id": job_id, "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": {}}
    return output_line(job_id, response={"status_code": 200, "request_id": job_id, "body": body})
