"""An application on a socket: uvicorn in a thread of its own, so that signals stay the caller's.

Connections that bring no whole head of a request in time are closed. Knows nothing of what the application does.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from types import TracebackType
from typing import Any, Self

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from mlxq.errors import ConfigError

HEAD_TIMEOUT_S = 30
"""For the head of a request to come, also of the first one of a connection."""
MAX_HEAD_BYTES = 64 * 1024
MAX_CONNECTIONS = 2000
"""Beyond those, and while so many requests are being answered, clients are told to try again later."""
GRACE_S = 10
"""For answers that are being sent when the server ends."""
BACKLOG = 2048


class HttpServer:
    """Serves while the `with` block runs.

    Args:
        host: a name or an address; port 0 takes any free one.

    Raises:
        ConfigError: the address can't be had.
    """

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        self._socket = _bound(host, port)
        self._config = uvicorn.Config(
            app,
            http=_PromptH11,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=HEAD_TIMEOUT_S,
            timeout_graceful_shutdown=GRACE_S,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            proxy_headers=False,
        )
        self._server = uvicorn.Server(self._config)
        self._thread = threading.Thread(target=self._run, name="mlxq-http")

    @property
    def url(self) -> str:
        """Where it is."""
        host, port = self._socket.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    @property
    def is_alive(self) -> bool:
        """Whether it serves; if not, it has failed, and the log says why."""
        return self._thread.is_alive()

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        # Not `Server.run`: the loop is asyncio's own, whatever else is installed.
        asyncio.run(self._server.serve(sockets=[self._socket]))


class _PromptH11(H11Protocol):
    """uvicorn gives a connection that is kept alive so long for its next request; this one gives the first as long, and
    each the same whether it comes at once or byte by byte."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._stop_waiting()
        self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"can't listen on {host}, port {port}: {reason}") from error
    bound.set_inheritable(False)
    return bound
