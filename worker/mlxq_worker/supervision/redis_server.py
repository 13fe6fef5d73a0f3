"""A Redis of one's own for the length of one command: nothing to install, configure or clean up.

Takes a `redis-server` or `valkey-server` from the PATH; without one, an in-process fakeredis. Either is reachable only
through a socket in a directory of this user's own. Keeps nothing on disk: whoever starts it holds the durable state.
The server ends with its owner, however that one ends. Knows nothing of queues.
"""

from __future__ import annotations

import atexit
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlxq.errors import ConfigError, QueueUnavailable
from mlxq_worker.processes import end_process

SERVERS = ("redis-server", "valkey-server")
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0
LOOK_S = 0.003
LOG_TAIL_LINES = 5


@dataclass(frozen=True, slots=True)
class PrivateRedis:
    """A running server. `kind` is the program's name, or ``fakeredis``."""

    url: str
    kind: str


@contextmanager
def private_redis(*, embedded: bool = False) -> Iterator[PrivateRedis]:
    """Run a private Redis for the length of the block; also stopped when the interpreter exits or is killed.

    Args:
        embedded: use fakeredis even where a server is installed.

    Raises:
        ConfigError: no server is installed, and fakeredis isn't either.
        QueueUnavailable: the server didn't come up.
    """
    program = None if embedded else next(filter(None, map(shutil.which, SERVERS)), None)
    with ExitStack() as stack:
        # For exits that skip the block's end, such as a generator that is never closed. Closing twice is harmless.
        atexit.register(stack.close)
        stack.callback(atexit.unregister, stack.close)
        directory = Path(tempfile.mkdtemp(prefix="mlxq-"))  # mode 0700: the socket is ours alone
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        yield _start_server(program, directory, stack) if program else _start_embedded(directory, stack)


def _start_server(program: str, directory: Path, stack: ExitStack) -> PrivateRedis:
    path, log = directory / "redis.sock", directory / "redis.log"
    server = _spawn_server(program, directory, path, log)
    stack.callback(_kill, server)
    watchdog = _spawn_watchdog(server.pid, directory)
    stack.callback(_stop, watchdog)  # goes first, so that it never kills a pid that has been reused
    _wait_until_up(path, server, log)
    return PrivateRedis(f"unix://{path}", Path(program).name)


def _spawn_server(program: str, directory: Path, path: Path, log: Path) -> subprocess.Popen[bytes]:
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(directory),
        "save": "",
        "appendonly": "no",
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    with log.open("wb") as output:
        # A session of its own: Ctrl-C must not end the server before its owner has collected what is done.
        return subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _spawn_watchdog(pid: int, directory: Path) -> subprocess.Popen[bytes]:
    """A shell that reads a pipe which only we hold: it ends when we do, by `kill -9` too, on any POSIX system."""
    script = 'while read -r line; do :; done; kill "$0"; rm -rf "$1"'
    return subprocess.Popen(
        ["/bin/sh", "-c", script, str(pid), str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _wait_until_up(path: Path, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while server.poll() is None and time.monotonic() < deadline:
        if _answers(path):
            return
        time.sleep(LOOK_S)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
    raise QueueUnavailable(f"the private Redis didn't start: {tail or 'no output'}")


def _answers(path: Path) -> bool:
    """Without redis-py, which takes longer to import than Redis to start."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def _kill(server: subprocess.Popen[bytes]) -> None:
    """At once: it has nothing to keep, and looks only ten times a second whether it is asked to end."""
    server.kill()
    server.wait()


def _stop(process: subprocess.Popen[bytes]) -> None:
    end_process(process, STOP_TIMEOUT_S)
    if process.stdin is not None:
        process.stdin.close()


def _start_embedded(directory: Path, stack: ExitStack) -> PrivateRedis:
    from mlxq_worker.supervision.embedded_redis import embedded_redis

    path = directory / "redis.sock"
    try:
        stack.enter_context(embedded_redis(path))
    except ConfigError:
        raise ConfigError(f"no {' or '.join(SERVERS)} on the PATH: install one, or fakeredis, or give --url") from None
    return PrivateRedis(f"unix://{path}", "fakeredis")
