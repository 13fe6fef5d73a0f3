"""Claims and acknowledges the jobs of one worker, between Redis and the engine.

`Consumer.turn` is one iteration and says how long it can wait for the next: what has ended is written, leases are
kept, jobs are claimed and prepared. Belongs to the I/O thread; what it has to tell the decode thread it puts into the
channel. Never blocks, and never touches an engine. Times are Unix seconds.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager

from redis.exceptions import ResponseError
from rq.worker import WorkerStatus

from mlxq.logs import fields
from mlxq_worker.config import WorkerConfig
from mlxq_worker.jobs.active import ActiveJobs
from mlxq_worker.jobs.cancelled_batches import CancelledBatches
from mlxq_worker.jobs.claiming import Claiming
from mlxq_worker.jobs.completion import Completion
from mlxq_worker.jobs.leases import Leases
from mlxq_worker.jobs.live.streams import Streams
from mlxq_worker.jobs.mending import Mending
from mlxq_worker.jobs.outbox import Outbox
from mlxq_worker.jobs.presence import Presence
from mlxq_worker.jobs.store import JobStore
from mlxq_worker.messages import (
    Channel,
    Close,
    Drained,
    Dropped,
    Measured,
    Ready,
    Recycle,
    Refused,
    Returned,
    RowEnded,
    StepRaised,
    StopClaiming,
    Streamed,
    ToIo,
)
from mlxq_worker.metrics.job_figures import JobFigures
from mlxq_worker.timing import Every, WorkingTime

logger = logging.getLogger("rq.worker")

CLEAN_S = 600.0
"""Between two cleanings of RQ's registries."""


class Consumer:
    """All jobs of one worker, from claim to end; the ends go through its `outbox`.

    Args:
        config: how much is claimed ahead, whether an empty queue is the end, how often dead workers are looked for.
        figures: what is recorded for whoever watches.
    """

    def __init__(
        self,
        store: JobStore,
        presence: Presence,
        channel: Channel,
        config: WorkerConfig,
        figures: JobFigures | None = None,
    ) -> None:
        self._store = store
        self._presence = presence
        self._mending = Mending(store)
        self._channel = channel
        self._burst = config.burst
        self._max_jobs = config.max_jobs
        self._clean_timer = Every(CLEAN_S)
        self._working_time = WorkingTime()
        self._active = ActiveJobs()
        figures = figures or JobFigures()
        self.outbox = Outbox(store, figures)
        batches = CancelledBatches(store)
        self._completion = Completion(self._active, self.outbox, batches, channel)
        self._leases = Leases(
            store, presence, self._active, self.outbox, self._completion, batches, channel, config, figures
        )
        self._streams = Streams(store, self._active)
        self._claiming = Claiming(
            store, self._active, self._completion, batches, channel, config, self._leases_kept_meanwhile
        )

    def __repr__(self) -> str:
        return f"Consumer({self._active!r}, ended={self.outbox.num_ended})"

    @property
    def num_active(self) -> int:
        """How many jobs it has claimed and not ended."""
        return len(self._active)

    @property
    def has_had_jobs(self) -> bool:
        """Whether it has ever claimed one."""
        return self._claiming.has_had_jobs

    def turn(self, now: float) -> float:
        """One iteration: beats, then writes what has ended, looks after the dead, prepares and claims.

        Returns how many seconds it can wait for the next turn, if no message comes.

        Raises:
            redis.exceptions.RedisError: nothing that has ended is lost; call again.
        """
        self._working_time.look(bool(self._active), now)
        self._leases.beat_if_due(self._state(), self._working_time.seconds, now)  # before what Redis may refuse
        self._claiming.note_queued(self.outbox.write(now))
        self._streams.write_if_due(now)
        self._recycle_if_due()
        self._leases.obey()
        if self._claiming.has_model and self._leases.is_recovery_due(now):
            self.reconcile(now)
            self._claiming.note_queued(self._leases.recover(now))
        if self._claiming.has_model and self._clean_timer.is_due(now):  # not before the dead have been looked after
            self._store.clean_registries()
        self._claiming.prepare_some()
        self._claim(now)
        self._working_time.look(bool(self._active), now)
        if self._mending.mend_if_due(now):
            self._presence.restore(self._state())
        if self.outbox.has_endings:
            return 0.0
        return min(self._leases.wait_s(now), self._claiming.wait_s(now), self._streams.wait_s(now))

    def receive(self, message: ToIo, now: float) -> None:
        """Take in what the decode thread has to say. Sends nothing to Redis, so it can't fail on it."""
        match message:
            case Ready(preparer, max_num_seqs, model_name):
                self._presence.serves(model_name, max_num_seqs)
                self._leases.beat_soon()
                self._claiming.start(preparer, max_num_seqs)
            case Streamed(pieces):
                self._streams.take(pieces)
            case RowEnded(result):
                self._presence.num_tokens += len(result.token_ids)
                self._completion.row_ended(result, now)
            case Dropped(row_ids):
                for active in self._active.of_rows(row_ids):
                    self._completion.end_unstarted(active)
            case Refused(row_id, error):
                self._completion.row_refused(row_id, error, now)
            case StepRaised(row_ids, error):
                self._completion.step_raised(row_ids, error)
            case Returned(row_ids):
                self._completion.give_back(self._active.of_rows(row_ids), strikes=0)
            case StopClaiming():
                self._claiming.stop()
            case Measured() | Close():  # the thread's own
                pass

    def reconcile(self, now: float) -> int:
        """Give back what a claim took whose reply was lost, by us or by a retry inside redis-py. Returns how many
        jobs that were."""
        ours = [active.job for active in self._active]
        num_strays = self._store.release_strays(ours + self.outbox.jobs(), now)
        if num_strays:
            logger.warning("Gave back %d jobs whose claim had got lost", num_strays)
            self._claiming.note_queued(num_strays)
        return num_strays

    def reconnected(self, now: float, away_s: float) -> None:
        """Redis was away for `away_s`: a claim's reply may have got lost, and other workers need time to come back."""
        self._leases.reconnected(now, away_s)
        self.reconcile(now)

    def mend(self, error: ResponseError) -> float:
        """Redis has refused a turn, as a key has the wrong type. Returns how many seconds to wait for the next turn.

        Raises:
            redis.exceptions.RedisError: call again.
        """
        return self._mending.after(error)

    def close(self, now: float) -> None:
        """Write what has ended and give everything else back. May be called again if it raises."""
        self._claiming.stop()
        if self._active:
            logger.info("Giving %d jobs back", len(self._active), extra=fields(num_jobs=len(self._active)))
            self._completion.give_back(self._active, strikes=0)
        self.outbox.write(now)
        self.reconcile(now)
        self._presence.beat(self._state(), self._working_time.seconds)
        self._presence.close()

    def surrender(self, now: float) -> None:
        """Give everything back, and what has ended and can't be written, too: it will be done again."""
        self._store.release([active.job for active in self._active] + self.outbox.jobs(), now)

    def _claim(self, now: float) -> None:
        nothing_left = self._claiming.claim(now) and not self.outbox.has_endings
        if self._burst and nothing_left and not self._leases.has_doubts and not self.reconcile(now):
            self._channel.to_decode.put(Drained())
            self._claiming.stop()

    def _leases_kept_meanwhile(self) -> AbstractContextManager[None]:
        return self._leases.kept_meanwhile(self._state(), self._working_time.seconds)

    def _recycle_if_due(self) -> None:
        limit = self._max_jobs
        if limit is not None and self.outbox.num_ended >= limit and not self._claiming.is_stopped:
            self._claiming.stop()
            self._channel.to_decode.put(Recycle("it has ended as many jobs as it was to"))

    def _state(self) -> WorkerStatus:
        if self._active:
            return WorkerStatus.BUSY
        return WorkerStatus.SUSPENDED if self._claiming.is_suspended else WorkerStatus.IDLE
