"""A real Redis server for tests: one per session, emptied before each test; never the developer's own.

A pytest plugin, so that every test can ask for `redis_url` or `connection`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from tests.support.programs import program_on_path
from tests.support.redis_at import redis_at
from tests.support.waiting import wait_until

from mlxq.deploying.roles import Role, acl_line
from mlxq_worker.supervision.redis_server import SERVERS, private_redis


class MortalRedis:
    """A server that a test kills and starts again at the same address, with the data of its last `SAVE`, if any."""

    def __init__(self, program: str, directory: Path) -> None:
        self.url = f"unix://{directory / 'redis.sock'}"
        options = ["--port", "0", "--unixsocket", str(directory / "redis.sock"), "--dir", str(directory), "--save", ""]
        self._command = [program, *options]
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._server = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        wait_until(self._answers, "redis-server to start")

    def _answers(self) -> bool:
        with redis_at(self.url) as connection:
            try:
                return bool(connection.ping())
            except RedisConnectionError:
                return False

    def save(self) -> None:
        with redis_at(self.url) as connection:
            connection.save()

    def refused(self) -> list[str]:
        """What it has refused to anybody, but for calls of CLIENT that redis-py can do without: Redis 6.2 has them in
        its ACL LOG by that name, where later ones name the part or don't know it."""
        with redis_at(self.url) as connection:
            return [str(entry["object"]) for entry in connection.acl_log() if entry["object"] != "client"]

    def kill(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None


def user_with_rights(url: str, role: Role, without: str = "") -> str:
    """The same Redis for a user that has the rights of this role, as `mlxq deploy acl` gives them, but for one."""
    name, *rights = acl_line(role).split()[1:]
    with redis_at(url) as admin:
        admin.execute_command("ACL", "SETUSER", name, "reset", *(right for right in rights if right != without))
    return url.replace("unix://", f"unix://{name}:CHANGE-ME@")


@pytest.fixture(scope="session")
def redis_program() -> str:
    return program_on_path(*SERVERS)


@pytest.fixture(scope="session")
def redis_server_url(redis_program: str) -> Iterator[str]:
    with private_redis() as server:
        yield server.url


@pytest.fixture
def mortal_redis(redis_program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MortalRedis]:
    """A server of the test's own, running."""
    server = MortalRedis(redis_program, tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def redis_url(redis_server_url: str) -> str:
    """The URL of an empty Redis."""
    with redis_at(redis_server_url) as connection:
        connection.flushall()
    return redis_server_url


@pytest.fixture
def connection(redis_url: str) -> Iterator[Redis]:
    """A connection to the empty Redis at `redis_url`."""
    with redis_at(redis_url) as connection:
        yield connection
