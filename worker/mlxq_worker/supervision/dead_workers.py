"""The jobs of dead workers of this host: names them in the log and ends their leases, so that the next worker that
looks takes them at once instead of after the lease.

A worker is dead for sure if its own supervisor saw it end. Another one is taken for dead if its entry in Redis names
this machine and a process that isn't there, and it has been silent for a while, by Redis's clock. Knows nothing of
processes beyond that.
"""

from __future__ import annotations

import logging
import re
import socket
import time
from collections.abc import Callable, Sequence
from typing import cast

from redis import Redis
from redis.exceptions import RedisError, ResponseError
from rq.utils import utcparse
from rq.worker_registration import WORKERS_BY_QUEUE_KEY

from mlxq.logs import fields
from mlxq.machine import machine_id
from mlxq.passing import passes
from mlxq.printable import log_printably
from mlxq.queue import rq_keys
from mlxq_worker.jobs.presence import ENTRY_TTL_S, MACHINE
from mlxq_worker.jobs.store import JobStore
from mlxq_worker.processes import is_alive
from mlxq_worker.timing import Every

logger = logging.getLogger("mlxq.supervisor")

SILENT_S = 5.0
"""A worker beats every second. What shares our name and our machine id, as copied images do, does so too."""
SILENT_ELSEWHERE_S = 45.0
"""For an entry that doesn't say which machine it is of, only when: its clock may differ from Redis's."""
LOOK_S = 10.0
"""Between two looks for dead workers of this host."""
_KEY_PREFIX = "rq:worker:"
_PID = re.compile(r"[0-9]{1,18}")


class DeadWorkers:
    """The jobs of some queues as whoever outlives their workers sees them. Never raises on a Redis that is away, since
    leases run out by themselves, nor on what strangers have written."""

    def __init__(self, connection: Redis, queues: Sequence[str]) -> None:
        self._redis = connection
        self._queues = list(queues)
        self._store = JobStore(connection, "mlxq-supervisor", queues)
        self._unreleased: dict[str, bool] = {}
        self._told: set[str] = set()
        self._machine = machine_id()
        log_printably(logger.name)
        self._look_timer = Every(LOOK_S)

    def release(self, worker_name: str, has_died: bool = True) -> None:
        """This worker is gone: end the leases of its jobs, which get a strike only if it has died. While Redis is away
        that is tried again with each `release_silent`."""
        try:
            self._release(worker_name, has_died=has_died, is_seen=True)
        except RedisError as error:
            self._unreleased[worker_name] = has_died
            logger.warning("The jobs of worker %s wait for their leases, or for Redis: %s", worker_name, error)

    def release_if_due(self, now: float) -> None:
        """`release_silent`, every ten seconds. `now` is in seconds on the monotonic clock."""
        if self._look_timer.is_due(now):
            self.release_silent()

    def release_silent(self) -> None:
        """Do so for every worker of this host that is dead and silent: those that a reboot or a kill -9 left behind."""
        try:
            for worker_name in list(self._unreleased):
                self._each_for_itself(worker_name, self._release_again)
            for queue in self._queues:
                self._each_for_itself(WORKERS_BY_QUEUE_KEY % queue, self._look_through)
        except RedisError as error:
            logger.debug("No look for dead workers: %s", error)

    def _each_for_itself(self, name: str, act: Callable[[str], object]) -> None:
        """What Redis refuses for ever of one key costs no other.

        Raises:
            RedisError: it is away, or can't do that now.
        """
        try:
            act(name)
        except ResponseError as error:
            if passes(error):
                raise
            self._unreleased.pop(name, None)  # its jobs wait for their leases
            if name not in self._told:
                self._told.add(name)
                logger.warning("No look at %s: %s", name, error)

    def _look_through(self, workers_key: str) -> None:
        """All workers of one queue."""
        for key in sorted(cast("set[bytes]", self._redis.smembers(workers_key))):
            if (name := _worker_name(key)) is not None:
                self._each_for_itself(name, self._release_if_dead)

    def _release_if_dead(self, worker_name: str) -> None:
        if self._is_dead(rq_keys.worker(worker_name)):
            self._release(worker_name, has_died=True, is_seen=False)

    def _release_again(self, worker_name: str) -> None:
        self._release(worker_name, has_died=self._unreleased[worker_name], is_seen=True)
        del self._unreleased[worker_name]

    def _release(self, worker_name: str, *, has_died: bool, is_seen: bool) -> None:
        if jobs := self._store.abandon(worker_name, time.time(), has_died=has_died, is_seen=is_seen):
            how = "died" if has_died else "ended"
            logger.warning(
                "Worker %s %s with %d jobs in hand: %s",
                worker_name,
                how,
                len(jobs),
                ", ".join(jobs),
                extra=fields(worker=worker_name, jobs=jobs),
            )

    def _is_dead(self, key: str) -> bool:
        entry = cast("list[bytes | None]", self._redis.hmget(key, "hostname", "pid", "last_heartbeat", MACHINE))
        hostname, pid, beat, machine = ((value or b"").decode(errors="replace") for value in entry)
        if hostname != socket.gethostname() or not _PID.fullmatch(pid) or is_alive(int(pid)):
            return False
        if machine:
            return machine == self._machine and self._silent_s(key) > SILENT_S
        return self._age_s(beat) > SILENT_ELSEWHERE_S

    def _silent_s(self, key: str) -> float:
        """Since the last beat of a worker whose entry every beat renews."""
        left_ms = self._redis.pttl(key)
        return ENTRY_TTL_S - left_ms / 1000 if left_ms >= 0 else 0.0

    def _age_s(self, beat: str) -> float:
        """Of a beat, by Redis's clock; 0 if there is none."""
        now_s, now_us = self._redis.time()
        try:
            return now_s + now_us / 1e6 - utcparse(beat).timestamp()
        except (ValueError, OverflowError):
            return 0.0


def _worker_name(key: bytes) -> str | None:
    """As RQ lists a worker; `None` for what else somebody has put there."""
    try:
        prefix, name = key[: len(_KEY_PREFIX)].decode(), key[len(_KEY_PREFIX) :].decode()
    except UnicodeDecodeError:
        return None
    return name if prefix == _KEY_PREFIX and name else None
