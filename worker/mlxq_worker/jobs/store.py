"""The jobs in Redis, under RQ's keys: claim, beat, end, release, recover. Only this file writes what RQ owns.

Each operation on a job is one Lua script (`lua/`), so that no crash and no other worker can see a job
in between. A worker owns a job for as long as its execution is in RQ's ``rq:wip:{queue}``, which is the lease;
every write of an end checks that first. Knows nothing of threads, engines or the wire format. Times are Unix
seconds on the caller's clock, and end up in what RQ's tools show; leases run on Redis's clock, since the workers'
clocks differ.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, cast
from uuid import uuid4

import msgspec
from redis import Redis
from redis import exceptions as redis_errors
from rq.defaults import RQ_KEY_PREFIX
from rq.executions import WORKER_EXECUTIONS_KEY_TEMPLATE
from rq.job import Job
from rq.queue import Queue
from rq.registry import FailedJobRegistry, FinishedJobRegistry, ReadyJobRegistry
from rq.serializers import JSONSerializer
from rq.utils import utcformat
from rq.worker_registration import WORKERS_BY_QUEUE_KEY

from mlxq import keys
from mlxq.passing import passes
from mlxq.queue import rq_keys, scripts
from mlxq.queue.broken_keys import BrokenKey, mend
from mlxq_worker.jobs.claimed import MAX_DATA_BYTES, ClaimedJob
from mlxq_worker.jobs.endings import Ending

logger = logging.getLogger("rq.worker")

LeaseState = Literal["held", "canceled", "lost"]
_LEASE_STATES: tuple[LeaseState, ...] = ("held", "canceled", "lost")

SUSPECT_STRIKES = 2
"""With this many strikes a job runs alone."""
MAX_STRIKES = 3
"""With this many it fails."""
FIRST_DELAY_S = 1.0
"""Before a job with one strike is tried again; twice that with two, and so on."""
MAX_DELAY_S = 60.0
QUIET_S = 5.0
"""Every worker beats once a second. If none has for so long, Redis was probably away, or took no writes."""
COME_BACK_S = 30.0
"""By then every worker has noticed that Redis works again, however long it waits between two tries."""
_WRONG_TYPE = "WRONGTYPE"

RECOVER_LIMIT = 500
"""Expired leases per call and queue, so that one call can't block Redis for long."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a claim brought, how many jobs are still queued, and how many of those are live. `suspended` says that
    ``rq suspend`` is on."""

    jobs: list[ClaimedJob]
    num_queued: int
    num_live: int
    suspended: bool


@dataclass(frozen=True, slots=True)
class Recovered:
    """Jobs of workers that are gone: how many went back with a strike, and how many without since Redis kept their
    workers from saying how they ended; and those that are ours now because they have to fail. Of `num_doubtful` more
    nobody knows yet whether their workers live."""

    num_requeued: int
    num_excused: int
    struck_out: list[ClaimedJob]
    num_doubtful: int


def script(name: str) -> str:
    """The text of one of the scripts in `lua/`."""
    return scripts.source(name, "mlxq_worker.jobs")


class JobStore:
    """The jobs of some queues as one worker sees them. Thread-safe as far as its connection is.

    Args:
        connection: must not decode responses.
        worker_name: the RQ worker that executions are registered for.
        queues: RQ queue names in order of preference.
        lease_s: how long a claimed job stays ours without a beat.
        result_ttl_s: for finished jobs that set no `result_ttl` of their own.
        lease_clock: what leases are measured with. ``caller`` takes the `now` of each call, for tests that move it.
        script: gives the text of a script by its name; another one is for tests that break a line.
    """

    def __init__(
        self,
        connection: Redis,
        worker_name: str,
        queues: Sequence[str],
        *,
        lease_s: float = 90.0,
        result_ttl_s: int = keys.RESULT_TTL_S,
        lease_clock: Literal["redis", "caller"] = "redis",
        script: Callable[[str], str] = script,
    ) -> None:
        self._redis = connection
        self._worker = worker_name
        self._queues = list(queues)
        self._lease_s = lease_s
        self._result_ttl_s = result_ttl_s
        self._lease_clock = lease_clock
        self._tells_uptime = True
        self._claim = connection.register_script(script("claim"))
        self._beat = connection.register_script(script("beat"))
        self._finish = connection.register_script(script("finish"))
        self._release = connection.register_script(script("release"))
        self._recover = connection.register_script(script("recover"))
        self._abandon = connection.register_script(script("abandon"))

    def claim(
        self,
        limit: int,
        now: float,
        *,
        live_limit: int | None = None,
        num_held: int = 0,
        max_bytes: int = MAX_DATA_BYTES,
    ) -> Claim:
        """Take up to `limit` jobs and, before them, up to `live_limit` live ones (by default as many), with up to
        `max_bytes` of data, and lease them. A suspect comes alone, and only to a worker that has nothing else; the data
        of a job that has too much doesn't come at all."""
        reply = self._claim(
            args=self._args(
                now,
                queues=self._queues,
                limit=limit,
                live_limit=limit if live_limit is None else live_limit,
                num_held=num_held,
                max_bytes=max_bytes,
                max_job_bytes=MAX_DATA_BYTES,
                suspect_at=SUSPECT_STRIKES,
                seed=uuid4().hex,
            )
        )
        suspended, num_queued, num_live, jobs = cast("tuple[int, int, int, list[list[bytes | None]]]", reply)
        return Claim([ClaimedJob.read(job, now) for job in jobs], num_queued, num_live, bool(suspended))

    def beat(self, jobs: Sequence[ClaimedJob], now: float) -> list[LeaseState]:
        """Extend the leases. Says of each job whether it is still ours, canceled (RQ's `Job.cancel`), or lost. One that
        RQ's clean-up has failed because its lease had run out is ours again."""
        entries = [(job.queue, job.job_id, job.execution_id) for job in jobs]
        states = cast("list[int]", self._beat(args=self._args(now, queues=self._queues, jobs=entries)))
        return [_LEASE_STATES[state] for state in states]

    def cancelled_batches(self, batches: Collection[str]) -> set[str]:
        """Those of the batches that somebody asked to cancel."""
        names = sorted(batches)
        with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hget(keys.batch(name), "cancelled")
            flags = pipe.execute(raise_on_error=False)
        for flag in flags:
            if isinstance(flag, Exception) and not str(flag).startswith(_WRONG_TYPE):  # that is no batch of ours
                raise flag
        return {name for name, flag in zip(names, flags, strict=True) if flag == b"1"}

    def end(self, endings: Sequence[Ending], now: float) -> list[bool]:
        """Write how jobs ended, all in one round trip. `False` says that the job wasn't ours any more and that
        nothing was written. Jobs that depend on these are enqueued with it, as RQ would."""
        with self._redis.pipeline(transaction=False) as pipe:
            for ending in endings:
                self._finish(args=self._finish_args(ending, now), client=pipe)
            return [bool(code) for code in pipe.execute()]

    def stream(self, pieces: Mapping[str, bytes], executions: Mapping[str, str]) -> None:
        """Tell those who read along, by job, what is new of its answer; the execution says who has written it. What
        can't be written is nobody's loss: the whole answer comes in the end.

        Raises:
            redis.exceptions.RedisError: Redis can't be reached.
        """
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id, text in pieces.items():
                entry: dict[Any, Any] = {"execution": executions[job_id], "pieces": text}
                pipe.xadd(keys.stream(job_id), entry, maxlen=keys.STREAM_LENGTH, approximate=True)
                pipe.expire(keys.stream(job_id), keys.STREAM_TTL_S)
            pipe.execute(raise_on_error=False)

    def release(self, jobs: Iterable[ClaimedJob], now: float, *, strikes: int = 0) -> None:
        """Give jobs back to the front of their queues in their old order, those that get strikes after a delay; no
        RQ retry is spent. Jobs that are not ours any more are left alone."""
        with self._redis.pipeline(transaction=False) as pipe:
            for job in reversed(list(jobs)):
                self._add_release(pipe, job.queue, job.job_id, job.execution_id, now, strikes)
            pipe.execute()

    def release_strays(self, active: Iterable[ClaimedJob], now: float) -> int:
        """Give back what is registered for this worker and not in `active`: a claim whose reply never arrived.
        Returns how many there were."""
        known = {f"{job.job_id}:{job.execution_id}".encode() for job in active}
        registered = self._redis.smembers(WORKER_EXECUTIONS_KEY_TEMPLATE.format(self._worker))
        strays = sorted(cast("set[bytes]", registered) - known)
        with self._redis.pipeline(transaction=False) as pipe:
            for stray in strays:
                job_id, _, execution_id = stray.decode(errors="replace").rpartition(":")
                for queue in self._queues:
                    self._add_release(pipe, queue, job_id, execution_id, now, 0)
            return sum(pipe.execute())

    def uptime_s(self) -> float:
        """How long Redis has been running; for ever, where it doesn't say."""
        if not self._tells_uptime:
            return float("inf")
        try:
            return float(self._redis.info("server")["uptime_in_seconds"])
        except (redis_errors.ResponseError, KeyError) as error:  # an embedded one, which hangs up on it, or an ACL
            if passes(error):
                raise
            self._tells_uptime = False
            return float("inf")

    def recover_expired(self, now: float, *, only_abandoned: bool = False) -> Recovered:
        """Take back the jobs whose lease ran out, each with a strike or an excuse; see `Recovered`. With
        `only_abandoned` those of workers that are known to be dead, see `abandon`."""
        parameters: dict[str, Any] = {"max_strikes": MAX_STRIKES, "limit": RECOVER_LIMIT, "seed": uuid4().hex}
        parameters["only_abandoned"] = only_abandoned
        reply = self._recover(args=self._args(now, queues=self._queues, **parameters))
        num_struck, num_excused, struck_out, num_doubtful = cast(
            "tuple[int, int, list[list[bytes | None]], int]", reply
        )
        return Recovered(num_struck, num_excused, [ClaimedJob.read(job, now) for job in struck_out], num_doubtful)

    def abandon(self, worker_name: str, now: float, *, has_died: bool = True, is_seen: bool = True) -> list[str]:
        """End the leases of all jobs of a worker, for it is gone. If it has died, the next `recover_expired`,
        anybody's, takes its jobs; if it has ended in peace, they are back in their queues. Returns their ids. A worker
        that lives after all registers again with its next beat.

        Args:
            is_seen: whether somebody saw how it ended; else Redis's own refusals are an excuse.
        """
        parameters: dict[str, Any] = {"queues": self._queues, "dead": worker_name}
        parameters |= {"has_died": has_died, "is_seen": is_seen}
        jobs = cast("list[bytes]", self._abandon(args=self._args(now, **parameters)))
        return [job.decode(errors="replace") for job in jobs]

    def mend(self) -> list[BrokenKey]:
        """Move away what strangers have put under the keys of this worker and its queues. Returns these keys, and those
        that any worker's script has come across since somebody last looked."""
        return mend(self._redis, rq_keys.kinds_for_worker(self._worker, self._queues), with_notes=True)

    def clean_registries(self) -> None:
        """RQ's maintenance of what ended long ago. Its cleaning of started jobs is left out: it would import and
        run the failure callbacks that jobs name; `recover_expired` does that work."""
        for name in self._queues:
            queue = self._queue(name)
            for registry_class in (FinishedJobRegistry, FailedJobRegistry, ReadyJobRegistry):
                registry = registry_class(queue=queue, job_class=Job, serializer=JSONSerializer)
                try:
                    registry.cleanup()
                except UnicodeDecodeError as error:
                    logger.warning("RQ can't clean %s, where a stranger put what is no text: %s", registry.key, error)
            self._clean_workers(WORKERS_BY_QUEUE_KEY % name)

    def _clean_workers(self, workers_key: str) -> None:
        """Strike those without an entry off a list of workers. RQ's own function ends on a name that is no text."""
        listed = sorted(cast("set[bytes]", self._redis.smembers(workers_key)))
        with self._redis.pipeline(transaction=False) as pipe:
            for key in listed:
                pipe.exists(key)
            are_there = pipe.execute()
        if gone := [key for key, is_there in zip(listed, are_there, strict=True) if not is_there]:
            self._redis.srem(workers_key, *gone)

    def _args(self, now: float, **parameters: Any) -> list[str | bytes]:
        moment = datetime.fromtimestamp(now, UTC)
        times = {"now": f"{now:.6f}", "now_iso": utcformat(moment)}
        lease = {"lease_s": self._lease_s, "lease_clock": self._lease_clock}
        lease |= {"quiet_s": min(QUIET_S, 0.75 * self._lease_s), "come_back_s": min(COME_BACK_S, self._lease_s)}
        lease |= {"delay_s": FIRST_DELAY_S, "max_delay_s": MAX_DELAY_S}
        return [RQ_KEY_PREFIX, msgspec.json.encode({"worker": self._worker, **times, **lease, **parameters})]

    def _finish_args(self, ending: Ending, now: float) -> list[str | bytes]:
        job = ending.job
        parameters: dict[str, Any] = {
            "queue": job.queue,
            "job": job.job_id,
            "execution": job.execution_id,
            "started": f"{job.claimed_at:.6f}",
            "outcome": ending.outcome,
            "status": ending.rq_status,
            "result_ttl": self._result_ttl_s,
            "failure_ttl": keys.FAILURE_TTL_S,
            "batch_ttl": keys.BATCH_TTL_S,
        }
        if job.batch is not None:
            parameters |= {
                "batch": keys.batch(job.batch),
                "batch_jobs": keys.batch_jobs(job.batch),
                "batch_events": keys.batch_events(job.batch),
                "counts": ending.counts,
            }
        return [*self._args(now, **parameters), ending.answer, ending.error]

    def _add_release(self, pipe: Any, queue: str, job_id: str, execution_id: str, now: float, strikes: int) -> None:
        place = {"queue": queue, "job": job_id, "execution": execution_id}
        self._release(args=self._args(now, strikes=strikes, **place), client=pipe)

    def _queue(self, name: str) -> Queue:
        return Queue(name, connection=self._redis, serializer=JSONSerializer)
