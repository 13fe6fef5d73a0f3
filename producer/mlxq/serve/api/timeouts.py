"""Clients that send or read too slowly, or not at all, are given up: each piece of a request or an answer has its time.

Knows nothing of what is sent.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlxq.serve.api.errors import ApiError

PIECE_TIMEOUT_S = 60.0
"""For the next piece of a body to come, or to be taken: at most 64 KiB."""


class Timeouts:
    """Gives up a request whose next piece doesn't come, and an answer whose next piece isn't taken."""

    def __init__(self, app: ASGIApp, timeout_s: float = PIECE_TIMEOUT_S) -> None:
        self._app = app
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body_ended = has_begun = False

        async def receive_in_time() -> Message:
            nonlocal body_ended
            if body_ended:  # what comes then says that the client has hung up, and may take as long as it likes
                return await receive()
            try:
                async with asyncio.timeout(self._timeout_s):
                    message = await receive()
            except TimeoutError:
                raise ApiError("The body doesn't come.", status_code=408, code="request_timeout") from None
            body_ended = not message.get("more_body", False)
            return message

        async def send_in_time(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            async with asyncio.timeout(self._timeout_s):
                await send(message)

        try:
            await self._app(scope, receive_in_time, send_in_time)
        except TimeoutError:
            if not has_begun:
                raise
            # The server closes the connection of an answer that isn't whole.
