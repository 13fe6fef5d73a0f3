"""Several Redis servers that belong together: a primary and its replica with a Sentinel, and a cluster of one node."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError
from tests.support.ports import free_port
from tests.support.redis_at import redis_on
from tests.support.waiting import wait_until

SERVICE = "mlxq-test"


@dataclass(frozen=True, slots=True)
class Watched:
    """A primary with a replica, and the Sentinel that watches over them."""

    url: str
    primary: subprocess.Popen[bytes]
    primary_port: int
    replica_port: int


@contextmanager
def server(program: str, directory: Path, *options: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A server at a port of its own, once it answers."""
    port = free_port()
    process = subprocess.Popen(
        [program, *options, "--port", str(port), "--dir", str(directory)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: answers(port), "the server")
        yield port, process
    finally:
        process.kill()
        process.wait()


@contextmanager
def watched_by_sentinel(program: str, directory: Path) -> Iterator[Watched]:
    """Stands once the Sentinel knows the replica."""
    with ExitStack() as stack:
        plain = ("--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0")
        primary_port, primary = stack.enter_context(server(program, directory, *plain))
        follow = (*plain, "--replicaof", "127.0.0.1", str(primary_port))
        replica_port, _ = stack.enter_context(server(program, directory, *follow))
        config = directory / "sentinel.conf"
        config.write_text(
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary_port} 1\n"
            f"sentinel down-after-milliseconds {SERVICE} 500\n"
            f"sentinel failover-timeout {SERVICE} 3000\n"
        )
        port, _ = stack.enter_context(server(program, directory, str(config), "--sentinel"))
        with redis_on(port) as sentinel:
            wait_until(lambda: sentinel.sentinel_slaves(SERVICE), "the Sentinel to know the replica")
        with redis_on(replica_port) as replica:
            wait_until(lambda: replica.info("replication")["master_link_status"] == "up", "the replica")
        # One Sentinel is down, as is usual: the next one is asked.
        url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{port}/{SERVICE}/0"
        yield Watched(url, primary, primary_port, replica_port)


@contextmanager
def cluster(program: str, directory: Path) -> Iterator[str]:
    """The URL of a cluster of one node, which has all slots."""
    with server(program, directory, "--cluster-enabled", "yes", "--save", "") as (port, _), redis_on(port) as redis:
        redis.execute_command("CLUSTER", "ADDSLOTSRANGE" if _has_ranges(redis) else "ADDSLOTS", *_slots(redis))
        wait_until(lambda: redis.execute_command("CLUSTER INFO")["cluster_state"] == "ok", "the cluster")
        yield f"redis://127.0.0.1:{port}/0"


def answers(port: int) -> bool:
    try:
        with redis_on(port) as redis:
            return bool(redis.ping())
    except RedisError:
        return False


def _has_ranges(redis: Redis) -> bool:
    return int(redis.info("server")["redis_version"].split(".")[0]) >= 7


def _slots(redis: Redis) -> list[int]:
    return [0, 16383] if _has_ranges(redis) else list(range(16384))
