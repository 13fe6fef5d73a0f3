"""Keeps the leases of active jobs, hears of cancellations, and takes over the jobs of workers that died.

Claims nothing by itself, and builds no answers. Times are Unix seconds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

from redis.exceptions import RedisError
from rq.worker import WorkerStatus

from mlxq.logs import fields
from mlxq_worker.config import WorkerConfig
from mlxq_worker.jobs.active import ActiveJob, ActiveJobs
from mlxq_worker.jobs.cancelled_batches import CancelledBatches
from mlxq_worker.jobs.completion import Completion
from mlxq_worker.jobs.endings import CancelledAs
from mlxq_worker.jobs.outbox import Outbox
from mlxq_worker.jobs.presence import Command, Presence
from mlxq_worker.jobs.store import COME_BACK_S, JobStore
from mlxq_worker.messages import Cancel, Channel, StopWorker
from mlxq_worker.metrics.job_figures import JobFigures
from mlxq_worker.timing import Every

logger = logging.getLogger("rq.worker")

BEAT_S = 1.0
"""Between two looks at leases and cancellations."""
MAX_KEPT_S = 300.0
COME_BACK_MARGIN_S = 2.0
"""What another worker may have noticed later than we that Redis was away."""


class Leases:
    """Whose jobs are whose.

    Args:
        active: the jobs whose leases are ours.
        outbox: those that have left, and whose leases are ours until that is written.
        completion: for those that are cancelled before they have rows, and jobs of dead workers that have to fail.
        config: how long a lease lasts, how often dead workers are looked for.
    """

    def __init__(
        self,
        store: JobStore,
        presence: Presence,
        active: ActiveJobs,
        outbox: Outbox,
        completion: Completion,
        batches: CancelledBatches,
        channel: Channel,
        config: WorkerConfig,
        figures: JobFigures,
    ) -> None:
        self._store = store
        self._presence = presence
        self._active = active
        self._outbox = outbox
        self._completion = completion
        self._batches = batches
        self._channel = channel
        self._figures = figures
        self._num_doubtful = 0
        self._lease_s = config.lease_s
        self._beat_s = min(BEAT_S, config.lease_s / 4)
        self._beat_timer = Every(self._beat_s)
        self._recovery_timer = Every(config.maintenance_s)

    @property
    def has_doubts(self) -> bool:
        """Whether there may be jobs to take over soon: their leases have run out, and it is too early to say why."""
        return self._num_doubtful > 0

    def wait_s(self, now: float) -> float:
        """How long no beat is due."""
        return self._beat_timer.left_s(now)

    def beat_soon(self) -> None:
        """There is something new to say of the worker: the next beat is due at once."""
        self._beat_timer = Every(self._beat_s)

    def obey(self) -> None:
        """Do what RQ's commands have asked for since the last look."""
        for command in self._presence.commands():
            self._obey(command)

    def beat_if_due(self, state: WorkerStatus, worked_s: float, now: float) -> None:
        """Extend the leases and say that the worker lives; drop what is cancelled or not ours any more.

        What has left and isn't written yet is still ours in Redis's eyes, and nobody else may take it.

        Args:
            worked_s: for how long it has had jobs in hand, since it began.
        """
        if not self._beat_timer.is_due(now):
            return
        everything = list(self._active)
        states = self._store.beat([active.job for active in everything] + self._outbox.jobs(), now)
        self._presence.beat(state, worked_s)
        for active, lease in zip(everything, states, strict=False):
            if lease == "lost":
                self._lose(active)
            elif lease == "canceled":
                self._cancel(active, "canceled")
        self._batches.look_at({active.job.batch for active in self._active if active.job.batch is not None})
        for active in self._active:
            if active.job.batch in self._batches:
                self._cancel(active, "canceled")

    @contextmanager
    def kept_meanwhile(self, state: WorkerStatus, worked_s: float) -> Iterator[None]:
        """Beats in a thread of its own while the block runs, for one that may take longer than a lease. Nothing else
        may touch jobs or Redis meanwhile; what a beat tells of them, the next one of `beat_if_due` tells again. Gives
        up after five minutes: what takes longer hangs."""
        end_s = time.monotonic() + MAX_KEPT_S
        jobs = [active.job for active in self._active] + self._outbox.jobs()
        is_over = Event()

        def beat() -> None:
            while not is_over.wait(self._beat_s) and time.monotonic() < end_s:
                with suppress(RedisError):
                    self._store.beat(jobs, time.time())
                    self._presence.beat(state, worked_s)

        thread = Thread(target=beat, name="mlxq-beat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def is_recovery_due(self, now: float) -> bool:
        """Whether it is time to look for the jobs of the dead; asking counts as looking."""
        return self._recovery_timer.is_due(now)

    def recover(self, now: float) -> int:
        """Take the jobs of the dead back to their queues, and fail those that have to; returns how many went back.

        While Redis has only just come back, none that are silent count as dead: nobody could extend a lease before.
        """
        come_back_s = min(COME_BACK_S, self._lease_s)
        recovered = self._store.recover_expired(now, only_abandoned=self._store.uptime_s() < come_back_s)
        self._num_doubtful = recovered.num_doubtful
        self._figures.recovered(recovered.num_requeued)
        if recovered.num_requeued:
            num_jobs = recovered.num_requeued
            logger.warning("Requeued %d jobs of a worker that died", num_jobs, extra=fields(num_jobs=num_jobs))
        if recovered.num_excused:
            num_jobs = recovered.num_excused
            logger.warning(
                "Requeued %d jobs, without a strike, of a worker that was gone when Redis took writes again",
                num_jobs,
                extra=fields(num_jobs=num_jobs),
            )
        for job in recovered.struck_out:
            self._completion.end_struck_out(job)
        return recovered.num_requeued + recovered.num_excused

    def reconnected(self, now: float, away_s: float) -> None:
        """Redis was away for `away_s`. The other workers' leases may have run out meanwhile, though they live: before
        anybody takes their jobs and gives them strikes, they get time to come back as well. No more than they need,
        or a connection that breaks again and again would keep us from it for ever: their pauses double, so that twice
        our own absence is plenty."""
        self._recovery_timer.postpone(now, min(COME_BACK_S, self._lease_s, 2 * away_s + COME_BACK_MARGIN_S))

    def _lose(self, active: ActiveJob) -> None:
        logger.warning(
            "Job %s isn't ours any more: its lease is gone", active.job.job_id, extra=active.job.log_fields()
        )
        self._figures.lost()
        self._active.forget(active.job)
        self._channel.to_decode.put(Cancel(active.row_ids))

    def _cancel(self, active: ActiveJob, cancelled_as: CancelledAs) -> None:
        if active.cancelled_as is not None:
            return
        active.cancelled_as = cancelled_as
        if active.specs:
            self._channel.to_decode.put(Cancel(active.row_ids))
        else:
            self._completion.end_cancelled(active)

    def _obey(self, command: Command) -> None:
        if command.kind == "shutdown":
            self._channel.to_decode.put(StopWorker("RQ's shutdown command"))
            return
        for active in self._active:
            if command.target in (active.job.job_id, active.job.execution_id):
                self._cancel(active, "stopped")
