"""The jobs of dead workers of this host: names them in the log and ends their leases, so that the next worker that
looks takes them at once instead of after the lease.

A worker is dead for sure if its own supervisor saw it end. Another one is taken for dead if its entry in Redis names
this host and a process that isn't there, and it has been silent for a while. Knows nothing of processes beyond that.
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

from mlxq_worker.jobs.store import JobStore
from mlxq_worker.processes import is_alive

logger = logging.getLogger("mlxq.supervisor")

SILENT_S = 5.0
"""A worker beats every second. Another host of our name, where the process id would be another's, does so too."""
_KEY_PREFIX = "rq:worker:"


class DeadWorkers:
    """The jobs of some queues as whoever outlives their workers sees them. Never raises on a Redis that is away: leases
    run out by themselves."""

    def __init__(self, connection: Redis, queues: Sequence[str]) -> None:
        self._redis = connection
        self._queues = [Queue(name, connection=connection, serializer="json") for name in queues]
        self._store = JobStore(connection, "mlxq-supervisor", queues)
        self._unreleased: dict[str, bool] = {}

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
            logger.warning("Worker %s %s with %d jobs in hand: %s", worker_name, how, len(jobs), ", ".join(jobs))

    def _is_dead(self, key: str) -> bool:
        entry = self._redis.hmget(key, "hostname", "pid", "last_heartbeat")
        hostname, pid, beat = ((value or b"").decode() for value in entry)  # type: ignore[union-attr]
        return hostname == socket.gethostname() and pid.isdigit() and not is_alive(int(pid)) and _is_old(beat)


def _is_old(beat: str) -> bool:
    try:
        return time.time() - utcparse(beat).timestamp() > SILENT_S
    except ValueError:
        return False
