"""A Redis that is killed and comes back: at the same address, with what its append-only file has kept.

Set up as `deploy/redis.conf` sets up a user's: fsync every second. A kill -9 then may lose writes that were already
acknowledged, which is harder on mlxq than `appendfsync always`.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from redis.exceptions import RedisError
from tests.faults import schedule
from tests.support.ports import free_port
from tests.support.redis_at import redis_at
from tests.support.redis_errors import RedisErrors
from tests.support.waiting import wait_until

from mlxq_worker.supervision.redis_server import SERVERS


class DurableRedis:
    """A server of the run's own on a free port; use it as a context manager."""

    def __init__(self, directory: Path) -> None:
        self._port = free_port()
        self._directory = directory
        self._server: subprocess.Popen[bytes] | None = None
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self.connection = redis_at(self.url)
        self._errors: RedisErrors | None = None

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            RuntimeError: it isn't installed.
            AssertionError: it doesn't come up.
        """
        command = [_program(), *self._options()]
        self._server = subprocess.Popen(command, stdout=subprocess.DEVNULL, restore_signals=False)
        wait_until(self._answers, f"Redis to start, see {self._directory}")

    def kill(self) -> None:
        """End it with SIGKILL, if it runs."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None

    def fail_with(self, error: schedule.RedisError) -> None:
        """Have it answer with this error until `recover`."""
        if self._server is None:
            raise RuntimeError("Redis doesn't run")
        self._errors = RedisErrors(self.url, self._server.pid, self._directory)
        self._errors.begin(error)

    def recover(self) -> None:
        """Have it work again."""
        if self._errors is not None:
            self._errors.end()
            self._errors = None

    def cut_connections(self) -> int | None:
        """Close all connections but our own; returns how many, or `None` while Redis is away."""
        try:
            return sum(
                int(self.connection.client_kill_filter(_type=kind, skipme=True)) for kind in ("normal", "pubsub")
            )
        except RedisError:
            return None

    def __enter__(self) -> DurableRedis:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.connection.close()
        self.kill()

    def _options(self) -> list[str]:
        options = {
            "port": str(self._port),
            "bind": "127.0.0.1",
            "dir": str(self._directory),
            "logfile": str(self._directory / "redis.log"),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "lua-time-limit": "100",
        }
        return [part for name, value in options.items() for part in (f"--{name}", value)]

    def _answers(self) -> bool:
        try:
            return bool(self.connection.ping())
        except RedisError:  # not up yet, or still loading
            return False


def _program() -> str:
    program = next(filter(None, map(shutil.which, SERVERS)), None)
    if program is None:
        raise RuntimeError(f"no {' or '.join(SERVERS)} on the PATH")
    return program
