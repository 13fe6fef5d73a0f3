"""The queues: whether somebody works on them, and what is stuck in them."""

from __future__ import annotations

from collections.abc import Iterator

from redis import Redis
from redis.exceptions import RedisError

from mlxq import keys
from mlxq.errors import MlxqError
from mlxq.printable import printable
from mlxq.queue import rq_keys
from mlxq.queue.connect import queue_errors
from mlxq.queue.overview import QueueState, queue_state
from mlxq_worker.commands.doctor.finding import Finding, note, ok, problem, warning

SILENT_S = 20.0
"""A worker beats every second; its entry in Redis lives for a minute."""


def look_at_queue(connection: Redis, name: str) -> Iterator[Finding]:
    """All about one queue."""
    shown = printable(name)
    try:
        with queue_errors(connection):
            state = queue_state(connection, name)
            now_s, _ = connection.time()
            num_expired = connection.zcount(rq_keys.leases(name), "-inf", now_s)
            num_delayed = connection.zcard(keys.delayed(name))
            silent = [worker.name for worker in state.workers if _ttl_s(connection, worker.name) < 60 - SILENT_S]
            num_broken = connection.hlen(keys.BROKEN)
    except (MlxqError, RedisError) as error:
        yield problem("queue", f"queue {shown} can't be looked at: {error}", "see the finding on Redis or its rights")
        return
    yield from look_at_work(state)
    yield from look_at_leases(shown, num_expired, len(state.workers))
    if num_delayed:
        yield note(
            "delayed_jobs",
            f"{num_delayed} jobs of queue {shown} wait to be tried again, after a step that raised or a worker's death",
            "nothing, unless it is always the same ones: the worker's log says why",
        )
    if silent:
        yield warning(
            "silent_workers",
            f"workers of queue {shown} are silent, for {SILENT_S:.0f} s or longer: {', '.join(map(printable, silent))}",
            "look at their machines and logs; the jobs of dead ones go to others by themselves within 90 seconds",
        )
    if num_broken:
        yield warning(
            "broken_keys",
            f"{num_broken} keys held something else than they should",
            "see the worker's log, and what else writes to this Redis; what was there is under mlxq:broken:KEY",
        )


def look_at_work(state: QueueState) -> Iterator[Finding]:
    """Whether somebody answers what waits."""
    name = printable(state.name)
    if state.waiting is None or state.running is None:
        yield problem(
            "queue",
            f"a key of queue {name} holds something else than RQ writes",
            "start a worker, which moves it to mlxq:broken:KEY, or use another queue",
        )
        return
    suspended = [worker for worker in state.workers if worker.state == "suspended"]
    if suspended and len(suspended) == len(state.workers):
        yield warning("workers", f"the workers of queue {name} are suspended", "rq resume")
    elif not state.workers and state.waiting:
        todo = f"mlxq worker --model MODEL --queue {name}"
        yield problem("workers", f"{state.waiting} jobs wait in queue {name}, and no worker serves it", todo)
    elif not state.workers:
        yield note("workers", f"no worker serves queue {name}", f"mlxq worker --model MODEL --queue {name}")
    else:
        yield ok(
            "workers",
            f"{len(state.workers)} workers serve queue {name}; {state.waiting} jobs wait, {state.running} run",
        )


def look_at_leases(name: str, num_expired: int, num_workers: int) -> Iterator[Finding]:
    """Whether jobs belong to workers that are gone."""
    if not num_expired:
        yield ok("leases", f"no job of queue {name} belongs to a worker that is gone")
    elif num_workers:
        what = f"{num_expired} jobs of queue {name} belong to workers that are gone"
        yield note("leases", what, "nothing: the workers that are there take them within seconds")
    else:
        yield warning(
            "leases",
            f"{num_expired} jobs of queue {name} belong to workers that are gone, and nobody is there to take them",
            f"start a worker: mlxq worker --model MODEL --queue {name}",
        )


def _ttl_s(connection: Redis, worker: str) -> float:
    """How long an entry of a worker lives on; 60 right after a beat. One that never expires is somebody else's."""
    left_ms = connection.pttl(rq_keys.worker(worker))
    return left_ms / 1000 if left_ms >= 0 else 60.0
