"""Serves metrics over HTTP, and whether the process is alive and ready: `/metrics`, `/health`, `/ready`.

In threads of its own, so that a scrape is answered whatever the rest of the process does. Knows neither queues nor
workers: whoever starts it says what there is to tell.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import Any, Self

from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry

from mlxq.errors import ConfigError
from mlxq.metrics.address import Address

logger = logging.getLogger("mlxq")

IDLE_S = 10.0
"""A connection that sends nothing for so long is closed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether all is well, and what was looked at."""

    is_well: bool
    about: Mapping[str, Any] = field(default_factory=dict)


class MetricsServer:
    """Listens once it is built, answers from `__enter__` to `__exit__`.

    Args:
        health: whether the process does its work; one that doesn't had better be killed.
        ready: whether it can take requests now.

    Raises:
        ConfigError: nobody can listen there.
    """

    def __init__(
        self,
        address: Address,
        registry: CollectorRegistry,
        *,
        health: Callable[[], Verdict],
        ready: Callable[[], Verdict],
    ) -> None:
        handler = type("Handler", (_Handler,), {"registry": registry, "checks": {"/health": health, "/ready": ready}})
        server = _ServerV6 if ":" in address.host else _Server
        try:
            self._server = server((address.host, address.port), handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"metrics can't be served at {address}: {error}") from error
        self.address = Address(self._server.server_address[1], address.host)
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="mlxq-metrics")
        self._thread.daemon = True

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked is gone before it had the answer; standard error is for the log."""
        logger.debug("A request for metrics from %s came to nothing", client_address, exc_info=True)


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    """One request. Each server has a subclass with what it serves."""

    registry: CollectorRegistry
    checks: Mapping[str, Callable[[], Verdict]]
    timeout = IDLE_S
    server_version = "mlxq"
    sys_version = ""

    def do_GET(self) -> None:
        """Called by `http.server`."""
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encode, content_type = choose_encoder(self.headers.get("Accept") or "")
            self._answer(200, content_type, encode(self.registry))
        elif check := self.checks.get(path):
            verdict = check()
            about = {"ok": verdict.is_well, **verdict.about}
            self._answer(200 if verdict.is_well else 503, "application/json", json.dumps(about).encode() + b"\n")
        else:
            self._answer(404, "text/plain; charset=utf-8", b"/metrics, /health and /ready are served here\n")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  http.server's name
        """Nobody wants a line for every scrape."""

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
