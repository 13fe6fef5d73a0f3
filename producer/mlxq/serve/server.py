"""Puts the parts of `mlxq serve` together over one Redis and one data directory. Decides nothing else."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mlxq.files.outages import Tell
from mlxq.queue.client import Client
from mlxq.serve.api.access import KeyRing
from mlxq.serve.api.app import build_app
from mlxq.serve.api.service import Limits, Service
from mlxq.serve.http_server import HttpServer
from mlxq.serve.live.desk import Desk, WaitLimits
from mlxq.serve.store.database import Database
from mlxq.serve.store.disk import DataDirectory
from mlxq.serve.work.batch_run import BatchRun, Rules
from mlxq.serve.work.dispatcher import Dispatcher
from mlxq.serve.work.leases import BatchLeases

LEASE_S = 15.0
MAX_RUNNING = 64
REPEAT_S = 60.0
"""How often one sentence is told: a hundred batches notice the same outage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the user says. `alone` keeps other processes out of the data directory, `lease_s` is how long a batch waits
    for a process that was killed, `wait_limits` is that of live requests."""

    data: Path
    host: str = "127.0.0.1"
    port: int = 8080
    keys: KeyRing | None = None
    alone: bool = False
    lease_s: float = LEASE_S
    max_running: int = MAX_RUNNING
    rules: Rules = field(default_factory=Rules)
    limits: Limits = field(default_factory=Limits)
    wait_limits: WaitLimits = field(default_factory=WaitLimits)


@contextmanager
def serving(client: Client, settings: Settings, tell: Tell) -> Iterator[HttpServer]:
    """Serve while the block runs; batches that have not ended are left as they stand.

    Raises:
        ConfigError: the address or the directory is taken.
        InputFileError: the directory can't be used.
    """
    with ExitStack() as stack:
        disk = DataDirectory(settings.data)
        stack.callback(os.close, disk.lock(alone=settings.alone))
        database = Database(disk.records)
        stack.callback(database.close)
        once = Sparing(tell)

        def run_batch(batch_id: str, is_ours: Callable[[], bool]) -> None:
            BatchRun(batch_id, database, disk, client, settings.rules, is_ours=is_ours, tell=once).run()

        dispatcher = Dispatcher(
            database,
            disk,
            BatchLeases(client.redis, settings.lease_s),
            run_batch,
            lease_s=settings.lease_s,
            max_running=settings.max_running,
            tell=once,
        )
        desk = Desk(client, max_waiting=settings.limits.max_live, wait_limits=settings.wait_limits)
        allow_unknown = settings.rules.allow_unknown
        service = Service(database, disk, client, settings.limits, desk, allow_unknown, dispatcher.wake)
        server = HttpServer(build_app(service, settings.keys), settings.host, settings.port)
        stack.enter_context(dispatcher)
        stack.enter_context(desk)
        yield stack.enter_context(server)


class Sparing:
    """Passes sentences on, each once in a while; may be called from any thread."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._told_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def __call__(self, sentence: str) -> None:
        now = time.monotonic()
        with self._lock:
            self._told_at = {text: at for text, at in self._told_at.items() if now - at < REPEAT_S}
            is_new = sentence not in self._told_at
            if is_new:
                self._told_at[sentence] = now
        if is_new:
            self._tell(sentence)
