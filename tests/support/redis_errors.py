"""Brings a real Redis to answer with one of its own errors for a while, by what brings it to that in real life.

Needs no rights beyond those over the server's process. Start the server with ``restore_signals=False``: Python ignores
the signal that a file's limit sends, and the server has to as well.
"""

from __future__ import annotations

import resource
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from redis.exceptions import RedisError
from tests.support.redis_at import redis_at
from tests.support.waiting import wait_until


class RedisErrors:
    """One server's errors, one at a time.

    Args:
        url: where it is.
        pid: its process.
        directory: its working directory.
    """

    def __init__(self, url: str, pid: int, directory: Path) -> None:
        self._redis = redis_at(url)
        self._url = url
        self._pid = pid
        self._snapshot = directory / "dump.rdb"
        self._begin: Mapping[str, Callable[[], object]] = {
            "MISCONF": self._fail_to_save,
            "OOM": lambda: self._redis.config_set("maxmemory", 1),
            "BUSY": self._run_endless_script,
            "READONLY": self._follow_nobody,
            "NOREPLICAS": lambda: self._redis.config_set("min-replicas-to-write", 1),
            "read-only replica": self._follow_nobody,
            "full disk": self._fill_disk,
        }

    def begin(self, error: str) -> None:
        """From now on it answers with this error, to writes or to everything."""
        self._begin[error]()

    def end(self) -> None:
        """It is well again, whatever it answered with."""
        wait_until(self._has_no_script, "the script to end")
        self._limit_files(None)
        self._redis.replicaof("NO", "ONE")
        for name in ("maxmemory", "min-replicas-to-write"):
            self._redis.config_set(name, 0)
        self._redis.config_set("save", "")
        if self._snapshot.is_dir():
            self._snapshot.rmdir()
        # Of the append-only file it finds out by itself that it can be written again.
        wait_until(self._takes_writes, "Redis to take writes again")
        self._redis.close()

    def _fail_to_save(self) -> None:
        """A snapshot can't take the place of a directory."""
        self._snapshot.mkdir()
        self._redis.config_set("save", "100000 100000000")
        self._redis.bgsave()
        wait_until(lambda: not self._takes_writes(), "the snapshot to fail")

    def _run_endless_script(self) -> None:
        def run() -> None:
            with redis_at(self._url) as redis, suppress(RedisError):
                redis.eval("while true do end", 0)

        threading.Thread(target=run, daemon=True).start()
        wait_until(lambda: not self._takes_writes(), "Redis to be busy")

    def _follow_nobody(self) -> None:
        """Port 1 is where nobody is."""
        self._redis.replicaof("127.0.0.1", "1")

    def _fill_disk(self) -> None:
        """As if there were no room for another byte. Notices it with its next write."""
        self._limit_files(1)
        self._takes_writes()

    def _limit_files(self, limit_bytes: int | None) -> None:
        if sys.platform == "linux":
            _, hard = resource.prlimit(self._pid, resource.RLIMIT_FSIZE)
            resource.prlimit(self._pid, resource.RLIMIT_FSIZE, (hard if limit_bytes is None else limit_bytes, hard))
        elif limit_bytes is not None:
            raise RuntimeError("only Linux can limit the files of another process")

    def _has_no_script(self) -> bool:
        try:
            self._redis.script_kill()
        except RedisError as error:
            return str(error).startswith("NOTBUSY")
        return False  # it ends a little later

    def _takes_writes(self) -> bool:
        try:
            self._redis.hset("mlxq-test:probe", "probe", "1")
            self._redis.delete("mlxq-test:probe")
        except RedisError:
            return False
        return True
