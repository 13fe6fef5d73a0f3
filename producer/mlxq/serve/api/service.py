"""What the routes work with. Holds no state of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request

from mlxq.queue.client import Client
from mlxq.serve.live.desk import Desk
from mlxq.serve.store.database import Database
from mlxq.serve.store.disk import DataDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client may ask for: bytes of a file, batches of one key that have not ended, and live requests of one
    key at a time."""

    max_file_bytes: int = 2 * 2**30
    max_open_batches: int = 1000
    max_live: int = 256


@dataclass(frozen=True, slots=True)
class Service:
    """The parts that routes use. With `allow_unknown` unknown fields of live requests are dropped. `wake` says that
    there is a new batch, or one less."""

    database: Database
    disk: DataDirectory
    client: Client
    limits: Limits
    desk: Desk
    allow_unknown: bool
    wake: Callable[[], None]


def service_of(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def owner_of(request: Request) -> str:
    """The name behind the key of a request (`mlxq.serve.api.access`)."""
    return str(request.state.owner)
