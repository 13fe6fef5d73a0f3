"""The jobs of dead workers of this host: names them in the log and ends their leases, so that the next worker that
looks takes them at once instead of after the lease.

A worker is dead for sure if its own supervisor saw it end. Another one is taken for dead if its entry in Redis names
this machine and a process that isn't there, and it has been silent for a while, by Redis's clock. Knows nothing of
processes beyond that.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Sequence

from redis import Redis
from redis.exceptions import RedisError
from rq.queue import Queue
from rq.utils import utcparse
from rq.worker_registration import get_keys

from mlxq.logs import fields
from mlxq.machine import machine_id
from mlxq_worker.jobs.presence import ENTRY_TTL_S, MACHINE
from mlxq_worker.jobs.store import JobStore
from mlxq_worker.processes import is_alive

logger = logging.getLogger("mlxq.supervisor")

SILENT_S = 5.0
"""A worker beats every second. What shares our name and our machine id, as copied images do, does so too."""
SILENT_ELSEWHERE_S = 45.0
"""For an entry that doesn't say which machine it is of, only when: its clock may differ from Redis's."""
_KEY_PREFIX = "rq:worker:"


class DeadWorkers:
    """The jobs of some queues as whoever outlives their workers sees them. Never raises on a Redis that is away: leases
    run out by themselves."""

    def __init__(self, connection: Redis, queues: Sequence[str]) -> None:
        self._redis = connection
        self._queues = [Queue(name, connection=connection, serializer="json") for name in queues]
        self._store = JobStore(connection, "mlxq-supervisor", queues)
        self._unreleased: dict[str, bool] = {}
        self._machine = machine_id()

    def release(self, worker_name: str, has_died: bool = True) -> None:
        """This worker is gone: end the leases of its jobs, which get a strike only if it has died. While Redis is away
        that is tried again with each `release_silent`."""
        try:
            self._release(worker_name, has_died=has_died)
        except RedisError as error:
            self._unreleased[worker_name] = has_died
            logger.warning("The jobs of worker %s wait for their leases, or for Redis: %s", worker_name, error)

    def release_silent(self) -> None:
        """Do so for every worker of this host that is dead and silent: those that a reboot or a kill -9 left behind."""
        try:
            for worker_name, has_died in list(self._unreleased.items()):
                self._release(worker_name, has_died=has_died)
                del self._unreleased[worker_name]
            for key in set().union(*(get_keys(queue) for queue in self._queues)):
                if self._is_dead(key):
                    self._release(key.removeprefix(_KEY_PREFIX))
        except RedisError as error:
            logger.debug("No look for dead workers: %s", error)

    def _release(self, worker_name: str, *, has_died: bool = True) -> None:
        if jobs := self._store.abandon(worker_name, time.time(), has_died=has_died):
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
        entry = self._redis.hmget(key, "hostname", "pid", "last_heartbeat", MACHINE)
        hostname, pid, beat, machine = ((value or b"").decode() for value in entry)  # type: ignore[union-attr]
        if hostname != socket.gethostname() or not pid.isdigit() or is_alive(int(pid)):
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
        except ValueError:
            return 0.0
