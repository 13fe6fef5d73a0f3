"""Claims as many jobs as there is room for, and prepares them for the decode thread.

Ends no job that has rows, and extends no lease. Times are Unix seconds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace as replace_spec

from msgspec.structs import replace

from mlxq.contract import Request
from mlxq.errors import RequestError
from mlxq.requests.openai import parse_object
from mlxq_worker.config import WorkerConfig
from mlxq_worker.engine.api import most_live_rows
from mlxq_worker.jobs import endings
from mlxq_worker.jobs.active import ActiveJob, ActiveJobs
from mlxq_worker.jobs.cancelled_batches import CancelledBatches
from mlxq_worker.jobs.claimed import MAX_DATA_BYTES, ClaimedJob
from mlxq_worker.jobs.completion import Completion
from mlxq_worker.jobs.store import SUSPECT_STRIKES, JobStore
from mlxq_worker.messages import Admit, Channel, Preparer
from mlxq_worker.prepared import PreparedRequest
from mlxq_worker.timing import Every
from mlxq_worker.traces import trace_of

logger = logging.getLogger("rq.worker")

POLL_S = 0.1
"""Between two looks at an empty queue."""
PREPARE_SLICE_S = 0.01
"""What ended is written at least this often, however many jobs wait to be prepared."""
HEAVY_BYTES = 16 * 1024
"""Of data as it lies in Redis. What has more may be megabytes of JSON, and take seconds to read."""


class Claiming:
    """Between the queues and the decode thread.

    `is_suspended` says that ``rq suspend`` is on.

    Args:
        active: claimed jobs are added here.
        completion: for those that end before they have rows, or go back.
        config: how much is claimed ahead.
        kept_meanwhile: the leases are, while what it gives is entered.
    """

    def __init__(
        self,
        store: JobStore,
        active: ActiveJobs,
        completion: Completion,
        batches: CancelledBatches,
        channel: Channel,
        config: WorkerConfig,
        kept_meanwhile: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._store = store
        self._active = active
        self._completion = completion
        self._batches = batches
        self._channel = channel
        self._claim_ahead = config.claim_ahead
        self._kept_meanwhile = kept_meanwhile
        self._preparer: Preparer | None = None
        self._is_stopped = False
        self._width = 0  # as many rows are decoded at once; not known before the model is loaded
        self._num_queued = 0  # as far as is known, of bulk jobs
        self._num_live = 0  # likewise, of live ones
        self._poll_timer = Every(POLL_S)
        self.is_suspended = False
        self.has_had_jobs = False

    @property
    def has_model(self) -> bool:
        return self._preparer is not None

    @property
    def is_stopped(self) -> bool:
        return self._is_stopped

    def start(self, preparer: Preparer, max_num_seqs: int) -> None:
        """The model is loaded, and so many rows of it are decoded at once."""
        self._preparer, self._width = preparer, max_num_seqs

    def stop(self) -> None:
        """Claim no more."""
        self._is_stopped = True

    def note_queued(self, num_jobs: int) -> None:
        """So many jobs have come back to the queues: the next claim doesn't wait."""
        self._num_queued += num_jobs

    def claim(self, now: float) -> bool:
        """Claim jobs, if there is room and it is time.

        Returns whether it saw that nothing is left: nothing queued that may be claimed, and nothing active.
        """
        room, live_room = self._room(), self._live_room()
        if not (room or live_room):
            return False
        if not (self._knows_of_jobs(room, live_room) or self._poll_timer.is_due(now)):
            return False
        max_bytes = MAX_DATA_BYTES - self._active.num_unprepared_bytes
        claim = self._store.claim(room, now, live_limit=live_room, num_held=len(self._active), max_bytes=max_bytes)
        # Where there was room and nobody came, those that wait can't be claimed yet.
        has_live = any(job.is_live for job in claim.jobs)
        has_bulk = any(not job.is_live for job in claim.jobs)
        self._num_live = claim.num_live if has_live or not live_room else 0
        self._num_queued = claim.num_queued - claim.num_live if has_bulk or not room else 0
        self._note_suspension(claim.suspended)
        self._add(claim.jobs)
        return not len(self._active) and (claim.suspended or not claim.num_queued)

    def prepare_some(self) -> None:
        """Prepare jobs in the order in which they were claimed, live ones first, for a short while. If the others turn
        out to have more rows than may be active, the rest goes back: another worker may have room for them."""
        started = time.perf_counter()
        room = self._most_rows - self._active.num_open_bulk_rows
        while active := self._active.next_unprepared(only_live=room <= 0):
            with self._kept_meanwhile() if active.job.num_data_bytes >= HEAVY_BYTES else nullcontext():
                self._prepare(active)
            room -= 0 if active.job.is_live else active.num_open_rows
            if time.perf_counter() - started >= PREPARE_SLICE_S:
                return
        if surplus := self._active.unprepared:
            self._completion.give_back(surplus, strikes=0)

    def wait_s(self, now: float) -> float:
        """How long there is nothing to claim or to prepare, as far as can be told."""
        if self._active.num_unprepared:
            return 0.0
        room, live_room = self._room(), self._live_room()
        if not (room or live_room):
            return float("inf")
        return 0.0 if self._knows_of_jobs(room, live_room) else self._poll_timer.left_s(now)

    @property
    def _most_rows(self) -> int:
        """How many rows may be active at once, running and prepared; a job has one for each of its answers."""
        return self._width * self._claim_ahead

    def _knows_of_jobs(self, room: int, live_room: int) -> bool:
        return bool((room and self._num_queued) or (live_room and self._num_live))

    def _live_room(self) -> int:
        """How many live jobs to claim now: no more than may run at once, since another worker may have room for the
        rest. They have this room beside that of all others."""
        if self._is_stopped or self._preparer is None or self._has_suspect():
            return 0
        return max(0, most_live_rows(self._width) - self._active.num_live_rows)

    def _room(self) -> int:
        """How many jobs to claim now. Not each single one that ends: a claim costs a round trip. How many rows they
        will have is not known yet, so they are taken to be like those that are active."""
        if self._is_stopped or self._preparer is None:
            return 0
        room = self._most_rows - self._active.num_unprepared_bulk - self._active.num_open_bulk_rows
        spare = self._most_rows - self._width
        if room <= spare // 4 or self._has_suspect():
            return 0
        return max(1, int(room / self._active.rows_per_job))

    def _has_suspect(self) -> bool:
        return any(active.job.strikes >= SUSPECT_STRIKES for active in self._active)

    def _add(self, jobs: list[ClaimedJob]) -> None:
        self.has_had_jobs |= bool(jobs)
        self._batches.look_at_new({job.batch for job in jobs if job.batch is not None})
        for job in jobs:
            active = ActiveJob(job)
            self._active.add(active)
            if job.batch in self._batches:
                self._completion.end_cancelled(active)

    def _note_suspension(self, is_suspended: bool) -> None:
        if is_suspended != self.is_suspended:
            logger.info("Suspended: run `rq resume` to go on" if is_suspended else "Resumed")
        self.is_suspended = is_suspended

    def _prepare(self, active: ActiveJob) -> None:
        job, preparer = active.job, self._preparer
        if preparer is None:
            raise RuntimeError("jobs are claimed only once there is a preparer")
        try:
            request = _within(parse_object(job.line(), default_custom_id=job.custom_id).request, job.allowance_s())
            specs = preparer.prepare(request, job.execution_id)
            if job.is_live:
                specs = tuple(replace_spec(spec, is_live=True) for spec in specs)
            if job.is_streamed:
                specs = preparer.streaming(request, specs)
            prepared = PreparedRequest(preparer, request, specs)
        except RequestError as error:
            self._completion.end(endings.rejected(job, error))
        except Exception as error:  # noqa: BLE001 - whatever it is, it costs this job only
            logger.error("Job %s can't be prepared: %s", job.job_id, trace_of(error), extra=job.log_fields())
            self._completion.end(endings.gave_up(job, "internal_error", f"the request can't be prepared: {error}"))
        else:
            self._active.open_rows(active, prepared)
            self._channel.to_decode.put(Admit(prepared.specs))


def _within(request: Request, allowance_s: float | None) -> Request:
    """The request with no more than that for its decoding; RQ's allowance and its own may both be set."""
    if allowance_s is None:
        return request
    own_s = request.sampling.timeout_s
    timeout_s = allowance_s if own_s is None else min(own_s, allowance_s)
    return replace(request, sampling=replace(request.sampling, timeout_s=timeout_s))
