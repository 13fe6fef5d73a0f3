"""Clients of `mlxq serve` that send or read too slowly are given up, and others are not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message
from tests.support.waiting import DEADLINE_S

from mlxq.serve import http_server
from mlxq.serve.api.errors import HANDLERS
from mlxq.serve.api.timeouts import Timeouts
from mlxq.serve.http_server import HttpServer


async def echo(request: Request) -> Response:
    return PlainTextResponse(await request.body())


APP = Starlette(routes=[Route("/", echo, methods=["GET", "POST"])], exception_handlers=HANDLERS)
SCOPE = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b"", "app": None}


def exchange(receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await Timeouts(APP, timeout_s=0.05)(dict(SCOPE), receive, send)

    asyncio.run(run())


def test_a_body_that_does_not_come_is_given_up_with_an_answer() -> None:
    sent: list[Any] = []

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    exchange(receive, send)

    assert sent[0]["status"] == 408
    assert b"request_timeout" in sent[1]["body"]


def test_an_answer_that_is_not_taken_is_given_up() -> None:
    sent: list[Any] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"hello", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()
        sent.append(message)

    exchange(receive, send)

    assert [message["type"] for message in sent] == ["http.response.start"]


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """Of a server that waits for the head of a request a fifth of a second."""
    monkeypatch.setattr(http_server, "HEAD_TIMEOUT_S", 0.2)
    with HttpServer(APP, "127.0.0.1", 0) as server:
        host, _, port = server.url.removeprefix("http://").partition(":")
        yield host, int(port)


def received(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    connection.settimeout(DEADLINE_S)
    return b"".join(iter(lambda: connection.recv(4096), b""))


@pytest.mark.parametrize("start", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_a_connection_that_brings_no_whole_head_is_closed(start: bytes, address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(start)

        assert received(connection) == b""


def test_a_connection_that_brings_its_head_byte_by_byte_is_closed_too(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        connection.settimeout(0.02)
        connection.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
        is_open = True
        while is_open:
            try:
                connection.sendall(b"x")
                is_open = connection.recv(1) != b""
            except TimeoutError:
                continue
            except ConnectionError:
                is_open = False


def test_who_asks_in_time_is_answered_and_may_ask_again() -> None:
    with HttpServer(APP, "127.0.0.1", 0) as server:
        host, _, port = server.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.settimeout(DEADLINE_S)
            for body in (b"one", b"two"):
                connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n" + body)
                answer = b""
                while not answer.endswith(body):
                    answer += connection.recv(4096)
                assert answer.startswith(b"HTTP/1.1 200")
