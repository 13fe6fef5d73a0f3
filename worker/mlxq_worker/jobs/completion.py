"""How active jobs leave a worker: each once, with an answer, with an error, or back to its queue.

Puts what has left into the outbox and sends nothing to Redis. Times are Unix seconds.
"""

from __future__ import annotations

from collections.abc import Iterable

from mlxq.errors import RequestError
from mlxq_worker.engine.api import RowId, RowResult
from mlxq_worker.jobs import endings
from mlxq_worker.jobs.active import ActiveJob, ActiveJobs
from mlxq_worker.jobs.cancelled_batches import CancelledBatches
from mlxq_worker.jobs.claimed import ClaimedJob
from mlxq_worker.jobs.endings import Ending
from mlxq_worker.jobs.outbox import Outbox
from mlxq_worker.jobs.store import MAX_STRIKES
from mlxq_worker.messages import Cancel, Channel


class Completion:
    """The one way out of `active`, into `outbox`; `batches` says in which words a cancelled job ends."""

    def __init__(self, active: ActiveJobs, outbox: Outbox, batches: CancelledBatches, channel: Channel) -> None:
        self._active = active
        self._outbox = outbox
        self._batches = batches
        self._channel = channel

    def end(self, ending: Ending) -> None:
        """The one exit of every active job that ends."""
        self._active.forget(ending.job)
        self._outbox.end(ending)

    def end_cancelled(self, active: ActiveJob) -> None:
        """It was cancelled before any of its rows ran."""
        with_batch = active.job.batch in self._batches
        self.end(endings.cancelled(active.job, active.cancelled_as or "canceled", with_batch=with_batch))

    def end_unstarted(self, active: ActiveJob) -> None:
        """Its rows were cancelled before any of them ran: with the job, or because one of them was refused."""
        if active.failure is not None:
            self.end(active.failure)
        else:
            self.end_cancelled(active)

    def end_struck_out(self, job: ClaimedJob) -> None:
        """A job of dead workers, never active here, that has been there at too many deaths."""
        message = f"the worker died {job.strikes} times while it held this job"
        self._outbox.end(endings.gave_up(job, "worker_crashed", message))

    def give_back(self, jobs: Iterable[ActiveJob], *, strikes: int) -> None:
        """To the front of their queues, with so many strikes more."""
        claimed = [active.job for active in jobs]
        for job in claimed:
            self._active.forget(job)
        self._outbox.give_back(claimed, strikes=strikes)

    def row_ended(self, result: RowResult, now: float) -> None:
        active = self._active.of_row(result.row_id)
        if active is None:
            self._outbox.num_late += 1
            return
        self._active.row_ended(active, result)
        self._end_if_complete(active, now)

    def row_refused(self, row_id: RowId, error: RequestError, now: float) -> None:
        """The engine could never run this row."""
        if active := self._active.of_row(row_id):
            self._active.row_refused(active, row_id)
            self._fail(active, endings.rejected(active.job, error))
            self._end_if_complete(active, now)

    def step_raised(self, row_ids: Iterable[RowId], error: str) -> None:
        """Everybody in the batch gets a strike: nobody knows yet whose fault it was."""
        back = []
        for active in self._active.of_rows(row_ids):
            if active.job.strikes + 1 < MAX_STRIKES:
                back.append(active)
            else:
                message = f"a step of the engine raised: {error.strip().splitlines()[-1]}"
                self.end(endings.gave_up(active.job, "engine_error", message, error))
        self.give_back(back, strikes=1)

    def _fail(self, active: ActiveJob, failure: Ending) -> None:
        """The engine won't take one of the job's rows, so none is worth waiting for: the others are cancelled."""
        if active.failure is None:
            active.failure = failure
            self._channel.to_decode.put(Cancel(tuple(active.open_ids)))

    def _end_if_complete(self, active: ActiveJob, now: float) -> None:
        if not active.open_ids:
            self.end(active.ending(now))
