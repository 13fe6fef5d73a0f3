"""The jobs that one worker holds, between Redis and the engine: claims, prepares, beats, cancels, ends.

`JobDesk.turn` is one iteration and says how long it can wait for the next. Belongs to the I/O thread; what it has
to tell the decode thread it puts into the channel. Never blocks, and never touches an engine. Times are Unix
seconds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from rq.worker import WorkerStatus

from mlxq.errors import RequestError
from mlxq.requests.openai import parse_object
from mlxq_worker.config import WorkerConfig
from mlxq_worker.engine.api import RowId, RowResult
from mlxq_worker.jobs import endings
from mlxq_worker.jobs.active import Held, HeldJobs
from mlxq_worker.jobs.cancelled_batches import CancelledBatches
from mlxq_worker.jobs.claimed import Claimed
from mlxq_worker.jobs.endings import CancelledAs, Ending
from mlxq_worker.jobs.outbox import Outbox
from mlxq_worker.jobs.presence import Command, Presence
from mlxq_worker.jobs.store import MAX_STRIKES, SUSPECT_STRIKES, JobStore
from mlxq_worker.messages import (
    Admit,
    Cancel,
    Channel,
    Close,
    Drained,
    Dropped,
    Ended,
    Preparer,
    Ready,
    Recycle,
    Refused,
    Returned,
    StepRaised,
    Stop,
    StopClaiming,
    ToIo,
)
from mlxq_worker.timing import Every
from mlxq_worker.traces import trace_of

logger = logging.getLogger("rq.worker")

BEAT_S = 1.0
"""Between two looks at leases and cancellations."""
POLL_S = 0.1
"""Between two looks at an empty queue."""
PREPARE_SLICE_S = 0.01
"""What ended is written at least this often, however many jobs wait to be prepared."""
COME_BACK_S = 30.0
"""By then every worker has noticed that Redis answers again, however long it waits between two tries."""
COME_BACK_MARGIN_S = 2.0
"""What another worker may have noticed later than we that Redis was away."""
CLEAN_S = 600.0
"""Between two cleanings of RQ's registries."""


class JobDesk:
    """All jobs of one worker, from claim to end; the ends go through its `outbox`.

    Args:
        config: how much is claimed ahead, whether an empty queue is the end, how often dead workers are looked for.
    """

    def __init__(self, store: JobStore, presence: Presence, channel: Channel, config: WorkerConfig) -> None:
        self._store = store
        self._presence = presence
        self._channel = channel
        self._config = config
        self._preparer: Preparer | None = None
        self._held = HeldJobs()
        self.outbox = Outbox(store)
        self._batches = CancelledBatches(store)
        self._is_claiming = True
        self._is_suspended = False
        self._num_queued = 0
        self._beat_timer = Every(min(BEAT_S, config.lease_s / 4))
        self._poll_timer = Every(POLL_S)
        self._recover_timer = Every(config.maintenance_s)
        self._clean_timer = Every(CLEAN_S)

    def __repr__(self) -> str:
        return f"JobDesk({self._held!r}, ended={self.outbox.num_ended})"

    def turn(self, now: float) -> float:
        """One iteration: writes what has ended, then beats, looks after the dead, prepares and claims.

        Returns how many seconds it can wait for the next turn, if no message comes.

        Raises:
            redis.exceptions.RedisError: nothing that has ended is lost; call again.
        """
        self._num_queued += self.outbox.write(now)
        self._recycle_if_due()
        for command in self._presence.commands():
            self._obey(command)
        if self._beat_timer.is_due(now):
            self._beat(now)
        if self._preparer is not None and self._recover_timer.is_due(now):
            self.reconcile(now)
            self._recover(now)
        if self._clean_timer.is_due(now):
            self._store.clean_registries()
        self._prepare_some()
        self._claim(now)
        return self._wait_s(now)

    def receive(self, message: ToIo, now: float) -> None:
        """Take in what the decode thread has to say. Sends nothing to Redis, so it can't fail on it."""
        match message:
            case Ready(preparer):
                self._preparer = preparer
            case Ended(result):
                self._row_ended(result, now)
            case Dropped(row_ids):
                for held in self._held.of_rows(row_ids):
                    self._end_cancelled(held)
            case Refused(row_id, error):
                self._row_refused(row_id, error, now)
            case StepRaised(row_ids, error):
                self._step_raised(row_ids, error)
            case Returned(row_ids):
                self._give_back(self._held.of_rows(row_ids), strikes=0)
            case StopClaiming():
                self._is_claiming = False
            case Close():
                pass

    def reconcile(self, now: float) -> int:
        """Give back what a claim took whose reply was lost, by us or by a retry inside redis-py. Returns how many
        jobs that were."""
        ours = [held.job for held in self._held]
        num_strays = self._store.release_strays(ours + self.outbox.jobs(), now)
        if num_strays:
            logger.warning("Gave back %d jobs whose claim had got lost", num_strays)
            self._num_queued += num_strays
        return num_strays

    def reconnected(self, now: float, away_s: float) -> None:
        """Redis was away for `away_s`. The other workers' leases may have run out meanwhile, though they live: before
        anybody takes their jobs and gives them strikes, they get time to come back as well. No more than they need,
        or a connection that breaks again and again would keep us from it for ever: their pauses double, so that twice
        our own absence is plenty."""
        self._recover_timer.postpone(now, min(COME_BACK_S, 2 * away_s + COME_BACK_MARGIN_S))
        self.reconcile(now)

    def close(self, now: float) -> None:
        """Write what has ended and give everything else back. May be called again if it raises."""
        self._is_claiming = False
        if self._held:
            logger.info("Giving %d jobs back", len(self._held))
            self._give_back(self._held, strikes=0)
        self._num_queued += self.outbox.write(now)
        self.reconcile(now)
        self._presence.close()

    def _recycle_if_due(self) -> None:
        limit = self._config.max_jobs
        if limit is not None and self.outbox.num_ended >= limit and self._is_claiming:
            self._is_claiming = False
            self._channel.to_decode.put(Recycle("it has ended as many jobs as it was to"))

    # --- Claiming and preparing -------------------------------------------------------------------------------

    def _claim(self, now: float) -> None:
        room = self._room()
        if room == 0 or not (self._num_queued or self._poll_timer.is_due(now)):
            return
        claim = self._store.claim(room, now, num_held=len(self._held))
        self._num_queued = claim.num_queued if claim.jobs else 0
        self._note_suspension(claim.suspended)
        self._take(claim.jobs)
        is_over = not self._held and not self.outbox.has_endings and (claim.suspended or not claim.num_queued)
        if self._config.burst and is_over and not self.reconcile(now):
            self._channel.to_decode.put(Drained())
            self._is_claiming = False

    def _room(self) -> int:
        """How many jobs to claim now. Not each single one that ends: a claim costs a round trip. How many rows they
        will have is not known yet, so they are taken to be like those that are held."""
        if not self._is_claiming or self._preparer is None:
            return 0
        room = self._config.max_held - self._held.num_unprepared - self._held.num_open_rows
        spare = self._config.max_held - self._config.engine.max_num_seqs
        if room <= spare // 4 or self._holds_suspect():
            return 0
        return max(1, int(room / self._held.rows_per_job))

    def _holds_suspect(self) -> bool:
        return any(held.job.strikes >= SUSPECT_STRIKES for held in self._held)

    def _take(self, jobs: list[Claimed]) -> None:
        self._batches.look_at_new({job.batch for job in jobs if job.batch is not None})
        for job in jobs:
            held = Held(job)
            self._held.add(held)
            if job.batch in self._batches:
                self._end_cancelled(held)

    def _note_suspension(self, is_suspended: bool) -> None:
        if is_suspended != self._is_suspended:
            logger.info("Suspended: run `rq resume` to go on" if is_suspended else "Resumed")
        self._is_suspended = is_suspended

    def _prepare_some(self) -> None:
        """Prepare jobs in the order in which they were claimed, for a short while. If they turn out to have more rows
        than we may hold, the rest goes back: another worker may have room for them."""
        started = time.perf_counter()
        room = self._config.max_held - self._held.num_open_rows
        while room > 0 and (held := self._held.next_unprepared()):
            self._prepare(held)
            room -= held.num_open_rows
            if time.perf_counter() - started >= PREPARE_SLICE_S:
                return
        if surplus := self._held.unprepared:
            self._give_back(surplus, strikes=0)

    def _prepare(self, held: Held) -> None:
        job, preparer = held.job, self._preparer
        if preparer is None:
            raise RuntimeError("jobs are claimed only once there is a preparer")
        try:
            request = parse_object(job.line(), default_custom_id=job.custom_id).request
            self._held.prepared(held, request, preparer.prepare(request, job.execution_id))
        except RequestError as error:
            self._end(endings.rejected(job, error))
        except Exception as error:  # noqa: BLE001 - whatever it is, it costs this job only
            logger.error("Job %s can't be prepared: %s", job.job_id, trace_of(error))
            self._end(endings.gave_up(job, "internal_error", f"the request can't be prepared: {error}"))
        else:
            self._channel.to_decode.put(Admit(held.specs))

    # --- Leases, cancellations, the dead ----------------------------------------------------------------------

    def _beat(self, now: float) -> None:
        self._presence.beat(self._state())
        everything = list(self._held)
        states = self._store.beat([held.job for held in everything], now) if everything else []
        for held, state in zip(everything, states, strict=True):
            if state == "lost":
                self._lose(held)
            elif state == "canceled":
                self._cancel(held, "canceled")
        self._batches.look_at({held.job.batch for held in self._held if held.job.batch is not None})
        for held in self._held:
            if held.job.batch in self._batches:
                self._cancel(held, "canceled")

    def _state(self) -> WorkerStatus:
        if self._held:
            return WorkerStatus.BUSY
        return WorkerStatus.SUSPENDED if self._is_suspended else WorkerStatus.IDLE

    def _lose(self, held: Held) -> None:
        logger.warning("Job %s isn't ours any more: its lease is gone", held.job.job_id)
        self._held.forget(held.job)
        self._channel.to_decode.put(Cancel(held.row_ids))

    def _cancel(self, held: Held, cancelled_as: CancelledAs) -> None:
        if held.cancelled_as is not None:
            return
        held.cancelled_as = cancelled_as
        if held.specs:
            self._channel.to_decode.put(Cancel(held.row_ids))
        else:
            self._end_cancelled(held)

    def _obey(self, command: Command) -> None:
        if command.kind == "shutdown":
            self._channel.to_decode.put(Stop("RQ's shutdown command"))
            return
        for held in self._held:
            if command.target in (held.job.job_id, held.job.execution_id):
                self._cancel(held, "stopped")

    def _recover(self, now: float) -> None:
        """Take the jobs of the dead. While Redis has only just come back, none that are silent count as such: nobody
        could extend a lease before."""
        come_back_s = min(COME_BACK_S, self._config.lease_s)
        recovered = self._store.recover_expired(now, only_abandoned=self._store.uptime_s() < come_back_s)
        if recovered.num_requeued:
            logger.warning("Requeued %d jobs of a worker that died", recovered.num_requeued)
            self._num_queued += recovered.num_requeued
        for job in recovered.struck_out:
            message = f"the worker died {job.strikes} times while it held this job"
            self.outbox.end(endings.gave_up(job, "worker_crashed", message))

    # --- Ends -------------------------------------------------------------------------------------------------

    def _row_ended(self, result: RowResult, now: float) -> None:
        held = self._held.of_row(result.row_id)
        if held is None:
            self.outbox.num_late += 1
            return
        self._held.take(held, result)
        if result.error_code is not None:
            self._fail(held, endings.row_failed(held.job, result.error_code))
        self._end_if_complete(held, now)

    def _row_refused(self, row_id: RowId, error: RequestError, now: float) -> None:
        if held := self._held.of_row(row_id):
            self._held.refused(held, row_id)
            self._fail(held, endings.rejected(held.job, error))
            self._end_if_complete(held, now)

    def _fail(self, held: Held, failure: Ending) -> None:
        """One of the job's rows won't give an answer, so none is worth waiting for: the others are cancelled."""
        if held.failure is None:
            held.failure = failure
            self._channel.to_decode.put(Cancel(tuple(held.open_ids)))

    def _end_if_complete(self, held: Held, now: float) -> None:
        if not held.open_ids and self._preparer is not None:
            self._end(held.ending(self._preparer, now))

    def _step_raised(self, row_ids: Iterable[RowId], error: str) -> None:
        """Everybody in the batch gets a strike: nobody knows yet whose fault it was."""
        back = []
        for held in self._held.of_rows(row_ids):
            if held.job.strikes + 1 < MAX_STRIKES:
                back.append(held)
            else:
                message = f"a step of the engine raised: {error.strip().splitlines()[-1]}"
                self._end(endings.gave_up(held.job, "engine_error", message, error))
        self._give_back(back, strikes=1)

    def _give_back(self, helds: Iterable[Held], *, strikes: int) -> None:
        jobs = []
        for held in helds:
            self._held.forget(held.job)
            jobs.append(held.job)
        self.outbox.give_back(jobs, strikes=strikes)

    def _end_cancelled(self, held: Held) -> None:
        with_batch = held.job.batch in self._batches
        self._end(endings.cancelled(held.job, held.cancelled_as or "canceled", with_batch=with_batch))

    def _end(self, ending: Ending) -> None:
        """The one exit of every job that is held."""
        self._held.forget(ending.job)
        self.outbox.end(ending)

    def _wait_s(self, now: float) -> float:
        if self._held.num_unprepared or self.outbox.has_endings or (self._room() and self._num_queued):
            return 0.0
        return min(self._beat_timer.left_s(now), self._poll_timer.left_s(now) if self._room() else BEAT_S)
