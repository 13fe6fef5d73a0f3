"""The routes of OpenAI's chats, completions and models: requests that are answered while their clients wait.

What a batch line may say, a live request may say; what is refused is said with the same words, and the status that they
stand for. A client that hangs up has its request cancelled.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import msgspec
from anyio.to_thread import run_sync
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mlxq.contract import CHAT, COMPLETIONS, Endpoint
from mlxq.errors import RequestError
from mlxq.queue.live.live_queue import Growth
from mlxq.requests.openai import ParsedLine, parse_object
from mlxq.serve.api.errors import ApiError
from mlxq.serve.api.parameters import json_body
from mlxq.serve.api.service import Service, owner_of, service_of
from mlxq.serve.live.desk import Desk, Ended, GivenUp, News, Waiter
from mlxq.serve.live.growing import Diverged, GrowingAnswer

MAX_BODY_BYTES = 4 * 2**20
MAX_ANSWERS = 16
"""Of one live request (`n`): its rows enter a batch one after another, and others wait meanwhile."""
DRAWN_SEEDS = 2**53
"""Below that, every JSON reader keeps one exactly."""
_STREAM_OPTIONS = ("include_usage",)
_STATUSES = {"cancelled": 409, "batch_cancelled": 409, "no_worker": 503, "overloaded": 503, "unavailable": 503}
"""By the code of a failure; 500 for all others."""
_DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class UnderstoodRequest:
    """A live request as it was understood."""

    line: ParsedLine
    is_streamed: bool
    with_usage: bool


async def chat(request: Request) -> Response:
    """POST /v1/chat/completions"""
    return await _answer(request, CHAT)


async def completion(request: Request) -> Response:
    """POST /v1/completions"""
    return await _answer(request, COMPLETIONS)


async def list_models(request: Request) -> Response:
    """GET /v1/models"""
    names = await run_sync(service_of(request).desk.models)
    return JSONResponse({"object": "list", "data": [_model(name) for name in names]})


async def retrieve_model(request: Request) -> Response:
    """GET /v1/models/{model}"""
    name = str(request.path_params["model"])
    names = await run_sync(service_of(request).desk.models)
    if name not in names:
        raise _no_such_model(name, names)
    return JSONResponse(_model(name))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "mlxq"}


def _no_such_model(name: str, names: Iterable[str]) -> ApiError:
    message = f"The model '{name[:100]}' does not exist here; there is {', '.join(names) or 'none yet'}."
    return ApiError(message, status_code=404, param="model", code="model_not_found")


async def _answer(request: Request, endpoint: Endpoint) -> Response:
    service, owner = service_of(request), owner_of(request)
    with _place(service.desk, owner) as place:
        body = await json_body(request, None, max_bytes=MAX_BODY_BYTES)
        waiter = Waiter(owner, asyncio.get_running_loop())
        asked = await run_sync(_enter, service, waiter, endpoint, body)
        stream = LiveAnswer(service.desk, waiter, endpoint, asked)
        if asked.is_streamed:
            place.is_handed_on = True
            return stream
        return await stream.whole(request.receive)


def _enter(service: Service, waiter: Waiter, endpoint: Endpoint, body: dict[str, Any]) -> UnderstoodRequest:
    """Read a request, and put it in line."""
    asked = _read(body, endpoint, waiter.job_id, allow_unknown=service.allow_unknown)
    model, names = asked.line.request.model, service.desk.models()
    if model is not None and names and model not in names:
        raise _no_such_model(model, names)
    service.desk.enter(waiter, asked.line, is_streamed=asked.is_streamed)
    return asked


def _read(body: Mapping[str, Any], endpoint: Endpoint, request_id: str, *, allow_unknown: bool) -> UnderstoodRequest:
    is_streamed = _flag(body.get("stream"), "stream")
    options = body.get("stream_options")
    if options is not None and not is_streamed:
        raise ApiError("stream_options needs stream.", param="stream_options", code="invalid_value")
    if options is not None and not isinstance(options, dict):
        raise ApiError("stream_options must be an object.", param="stream_options", code="invalid_type")
    for name in options or ():
        if name not in _STREAM_OPTIONS:
            message = f"unknown field stream_options.{name[:100]}; there is include_usage"
            raise ApiError(message, param=f"stream_options.{name[:100]}", code="unknown_field")
    with_usage = _flag((options or {}).get("include_usage"), "stream_options.include_usage")
    line: dict[str, Any] = {"custom_id": request_id, "url": endpoint, "body": {}}
    line["body"] = {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
    try:
        parsed = parse_object(line, default_custom_id=request_id, allow_unknown=allow_unknown)
        sampling = parsed.request.sampling
        if is_streamed and sampling.beam is not None:
            raise RequestError("stream can't be had with use_beam_search: which answer is the best shows in the end",
                               param="stream", code="unsupported")  # fmt: skip
        if sampling.n > MAX_ANSWERS:
            raise RequestError(f"n may be {MAX_ANSWERS} at most in a live request", param="n", code="out_of_range")
        if is_streamed and sampling.seed is None:  # a worker that begins again tells the same
            line["body"]["seed"] = secrets.randbelow(DRAWN_SEEDS)
            parsed = parse_object(line, default_custom_id=request_id, allow_unknown=allow_unknown)
    except RequestError as error:
        raise ApiError(error.message, status_code=error.status_code, param=error.param, code=error.code) from error
    return UnderstoodRequest(parsed, is_streamed, with_usage)


def _flag(value: Any, param: str) -> bool:
    if value is not None and not isinstance(value, bool):
        raise ApiError(f"{param} must be true or false.", param=param, code="invalid_type")
    return bool(value)


@dataclass(slots=True)
class _Place:
    is_handed_on: bool = False


@contextmanager
def _place(desk: Desk, owner: str) -> Iterator[_Place]:
    """One of the places that an owner has; given back in the end, unless it is handed on."""
    if not desk.take_place(owner):
        message = f"This key has {desk.max_waiting} live requests that are being answered; wait for some."
        raise ApiError(message, status_code=429, code="rate_limit_exceeded", retry_after_s=1)
    place = _Place()
    try:
        yield place
    finally:
        if not place.is_handed_on:
            desk.give_place_back(owner)


class LiveAnswer(Response):
    """The answer to a request that is in line: whole, or as a response that tells it while it grows."""

    def __init__(self, desk: Desk, waiter: Waiter, endpoint: Endpoint, asked: UnderstoodRequest) -> None:
        self._desk = desk
        self._waiter = waiter
        self._asked = asked
        model = asked.line.request.model or "mlxq"
        self._growing = GrowingAnswer(
            endpoint, waiter.job_id, created=int(time.time()), model=model, with_usage=asked.with_usage
        )
        self._has_begun = False
        self.background = None

    async def whole(self, receive: Receive) -> Response:
        """
        Raises:
            ApiError: there is none.
            ClientDisconnect: nobody waits for it any more.
        """
        try:
            async for news in self._news(receive):
                if isinstance(news, Ended):
                    return JSONResponse(_body_of(news.line))
                if isinstance(news, GivenUp):
                    raise _given_up(news)
            raise ClientDisconnect
        finally:
            self._desk.leave(self._waiter)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async for news in self._news(receive):
                await self._tell(news, scope, receive, send)
        finally:
            self._desk.leave(self._waiter)
            self._desk.give_place_back(self._waiter.owner)

    async def _news(self, receive: Receive) -> AsyncIterator[News]:
        """Until there are no more, or the client hangs up."""
        hang_up = asyncio.ensure_future(_hang_up(receive))
        try:
            while True:
                news = asyncio.ensure_future(self._waiter.news.get())
                try:
                    await asyncio.wait({news, hang_up}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not news.done():
                        news.cancel()
                if hang_up.done():
                    return
                found = news.result()
                yield found
                if not isinstance(found, Growth):
                    return
        finally:
            hang_up.cancel()
            with suppress(asyncio.CancelledError):
                await hang_up

    async def _tell(self, news: News, scope: Scope, receive: Receive, send: Send) -> None:
        """One piece of news. Before the first chunk a failure has a status of its own."""
        try:
            chunks = self._chunks_of(news)
        except ApiError as error:
            if not self._has_begun:
                await error.response()(scope, receive, send)
                return
            chunks = [error.body()]
        if chunks and not self._has_begun:
            self._has_begun = True
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store"),
                       (b"x-accel-buffering", b"no")]  # fmt: skip
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        data = b"".join(b"data: %b\n\n" % msgspec.json.encode(chunk) for chunk in chunks)
        is_last = not isinstance(news, Growth)
        if data:
            body = data + (_DONE if is_last else b"")
            await send({"type": "http.response.body", "body": body, "more_body": not is_last})

    def _chunks_of(self, news: News) -> list[dict[str, Any]]:
        """
        Raises:
            ApiError: there is no answer, or another one than what was told of it.
        """
        if isinstance(news, Growth):
            return list(self._growing.grow(news.pieces))
        if isinstance(news, GivenUp):
            raise _given_up(news)
        try:
            return list(self._growing.end(_body_of(news.line)))
        except Diverged as error:
            message = "The answer had to be begun again, and came out differently."
            raise ApiError(message, status_code=500, code="stream_diverged") from error


async def _hang_up(receive: Receive) -> None:
    """Returns when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _body_of(line: Mapping[str, Any]) -> dict[str, Any]:
    """The answer in an output line.

    Raises:
        ApiError: there is none.
    """
    response, error = line.get("response"), line.get("error")
    if response is not None:
        body: dict[str, Any] = response["body"]
        if response["status_code"] < 400:
            return body
        said = body["error"]
        raise ApiError(
            said["message"], status_code=response["status_code"], param=said.get("param"), code=said.get("code")
        )
    error = error or {"code": "internal_error", "message": "there is no answer"}
    raise ApiError(error["message"], status_code=_STATUSES.get(error["code"], 500), code=error["code"])


def _given_up(news: GivenUp) -> ApiError:
    return ApiError(
        news.message, status_code=_STATUSES.get(news.code, 500), code=news.code, retry_after_s=news.retry_after_s
    )


ROUTES = [
    Route("/v1/chat/completions", chat, methods=["POST"]),
    Route("/v1/completions", completion, methods=["POST"]),
    Route("/v1/models", list_models, methods=["GET"]),
    Route("/v1/models/{model:path}", retrieve_model, methods=["GET"]),
]
