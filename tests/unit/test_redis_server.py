"""The private Redis comes up, keeps to itself, and never outlives its owner."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import WatchError
from tests.support.redis_at import redis_at
from tests.support.waiting import wait_until

from mlxq.errors import QueueUnavailable
from mlxq_worker.supervision.redis_server import SERVERS, private_redis

needs_server = pytest.mark.skipif(not any(map(shutil.which, SERVERS)), reason="no redis-server on the PATH")

OWNER = """
import time
from mlxq_worker.supervision.redis_server import private_redis
with private_redis() as server:
    print(server.url, flush=True)
    time.sleep(3600)
"""


def wait_until_gone(path: Path) -> None:
    wait_until(lambda: not path.exists(), f"{path} to go")


def mode_of_directory(url: str) -> int:
    """The rights to the directory that a server's socket is in."""
    return Path(url.removeprefix("unix://")).parent.stat().st_mode & 0o777


@needs_server
def test_a_server_listens_on_a_private_socket_and_never_evicts() -> None:
    with private_redis() as server, redis_at(server.url) as connection:
        assert server.kind in SERVERS
        assert connection.config_get("maxmemory-policy", "port", "save") == {
            "maxmemory-policy": "noeviction",
            "port": "0",
            "save": "",
        }
        assert mode_of_directory(server.url) == 0o700


@needs_server
def test_nothing_is_left_after_the_block() -> None:
    with private_redis() as server:
        directory = Path(server.url.removeprefix("unix://")).parent
        assert directory.exists()
    assert not directory.exists()


@needs_server
def test_two_servers_share_nothing() -> None:
    with private_redis() as one, private_redis() as other:
        with redis_at(one.url) as connection:
            connection.set("a", "1")
        with redis_at(other.url) as connection:
            assert connection.get("a") is None


@needs_server
def test_the_server_ends_when_its_owner_is_killed() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    url = owner.stdout.readline().strip()
    with redis_at(url) as connection:
        pid = int(connection.info("server")["process_id"])

    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()

    wait_until_gone(Path(url.removeprefix("unix://")).parent)
    wait_until_gone(Path(f"/proc/{pid}"))


def test_a_server_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "redis-server"
    broken.write_text("#!/bin/sh\necho out of luck\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(QueueUnavailable, match="out of luck"), private_redis():
        pytest.fail("the block must not run")


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No Redis server can be found."""
    monkeypatch.setenv("PATH", str(tmp_path))


def test_without_a_server_an_embedded_one_takes_its_place(no_server: None) -> None:
    with private_redis() as server, redis_at(server.url) as connection:
        assert server.kind == "fakeredis"
        connection.xadd("events", {"job": "a"})
        assert connection.xlen("events") == 1
        assert connection.client_info()["addr"].startswith("/"), "what an RQ worker asks when it starts"


def test_an_embedded_server_is_reached_through_a_private_socket_and_nothing_is_left_of_it(no_server: None) -> None:
    with private_redis() as server:
        assert mode_of_directory(server.url) == 0o700
        directory = Path(server.url.removeprefix("unix://")).parent
    assert not directory.exists()


def test_clients_of_an_embedded_server_keep_apart(no_server: None) -> None:
    """Transactions and subscriptions are those of one connection."""
    with private_redis() as server, redis_at(server.url) as one, redis_at(server.url) as other:
        with one.pipeline() as pipe, other.pubsub(ignore_subscribe_messages=True) as listening:
            listening.subscribe("news")
            pipe.watch("a")
            before = pipe.get("a")
            other.set("a", "theirs")
            pipe.multi()
            pipe.set("a", "ours")
            with pytest.raises(WatchError):
                pipe.execute()
            one.publish("news", "hello")
            heard: list[Any] = []
            wait_until(lambda: heard.extend(filter(None, [listening.get_message()])) or heard, "the news")
        assert before is None
        assert one.get("a") == b"theirs"
        assert heard[0]["data"] == b"hello"
