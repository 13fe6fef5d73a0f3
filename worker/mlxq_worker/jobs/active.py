"""The jobs that a worker has claimed and not ended yet, and the rows that each has become: what is prepared, and what
has ended.

A request becomes one row, n rows (`n` answers), or one beam search, whose hypotheses end as rows do. Its job is at its
end once all of them are. Sends nothing to Redis, and knows no engine and no clock.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from mlxq.contract import Result
from mlxq_worker.engine.api import RowId, RowResult, RowSpec
from mlxq_worker.jobs import endings
from mlxq_worker.jobs.claimed import ClaimedJob
from mlxq_worker.jobs.endings import CancelledAs, Ending
from mlxq_worker.prepared import PreparedRequest
from mlxq_worker.traces import trace_of

logger = logging.getLogger("rq.worker")


@dataclass(slots=True, eq=False)
class ActiveJob:
    """A job that is ours. `prepared` is there once the decode thread has it.

    `open_ids` are the row ids of the answers that are still to come, `results` those that came; a row that died has a
    result, too. `failure` is how the job ends in place of an answer, once nothing of it is open.
    """

    job: ClaimedJob
    prepared: PreparedRequest | None = None
    cancelled_as: CancelledAs | None = None
    failure: Ending | None = None
    open_ids: set[RowId] = field(default_factory=set)
    results: dict[RowId, RowResult] = field(default_factory=dict)

    @property
    def specs(self) -> tuple[RowSpec, ...]:
        """The rows as the engine was given them; none yet before it is prepared."""
        return self.prepared.specs if self.prepared else ()

    @property
    def row_ids(self) -> tuple[RowId, ...]:
        """The ids of these rows."""
        return tuple(spec.row_id for spec in self.specs)

    @property
    def num_open_rows(self) -> int:
        """How many rows of a batch this job still takes."""
        return sum(spec.num_rows for spec in self.specs if spec.row_id in self.open_ids)

    def open_rows(self, prepared: PreparedRequest) -> None:
        """It is prepared: these are its rows."""
        self.prepared = prepared
        self.job = self.job.without_data()
        self.open_ids = set(prepared.answer_ids)

    def row_ended(self, result: RowResult) -> None:
        """One answer has come to its end."""
        self.results[result.row_id] = result
        self.open_ids.discard(result.row_id)

    def row_refused(self, row_id: RowId) -> None:
        """The engine doesn't take this row: nothing will come of it."""
        for spec in self.specs:
            if spec.row_id == row_id:
                self.open_ids.difference_update(spec.answer_ids)

    def ending(self, now: float) -> Ending:
        """How the job ends, now that nothing of it is open. `now` is in Unix seconds."""
        if self.failure is not None:
            return self.failure
        assert self.prepared is not None, "rows end only after they were prepared"
        results = tuple(self.results[row_id] for row_id in self.prepared.answer_ids)
        if (death := self.prepared.error_of_all(results)) is not None:
            return endings.all_rows_died(self.job, death)
        try:
            return endings.answered(self.job, self._answer(self.prepared, results, now), self.cancelled_as)
        except Exception as error:  # noqa: BLE001 - whatever it is, it costs this job only
            logger.error(
                "The answer to job %s can't be built: %s", self.job.job_id, trace_of(error), extra=self.job.log_fields()
            )
            return endings.gave_up(self.job, "internal_error", f"the answer can't be built: {error}")

    def _answer(self, prepared: PreparedRequest, results: tuple[RowResult, ...], now: float) -> Result:
        return prepared.answer(results, request_id=self.job.job_id, queued_at=self.job.enqueued_at, now=now)


class ActiveJobs:
    """All active jobs, in the order in which they were claimed. `num_open_rows` is how many rows of a batch they take
    together; it is counted along, since every turn asks for it."""

    def __init__(self) -> None:
        self._jobs: dict[str, ActiveJob] = {}
        self._unprepared: deque[ActiveJob] = deque()
        self._unprepared_live: deque[ActiveJob] = deque()
        self._live: dict[str, ActiveJob] = {}
        self.num_open_rows = 0

    def __repr__(self) -> str:
        return f"ActiveJobs({len(self)} jobs, {self.num_unprepared} unprepared, {self.num_open_rows} open rows)"

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[ActiveJob]:
        """Over a copy: the jobs may be forgotten on the way."""
        return iter(list(self._jobs.values()))

    @property
    def unprepared(self) -> tuple[ActiveJob, ...]:
        return (*self._unprepared_live, *self._unprepared)

    @property
    def num_unprepared(self) -> int:
        return len(self._unprepared_live) + len(self._unprepared)

    @property
    def num_unprepared_bulk(self) -> int:
        """How many of those are no live ones."""
        return len(self._unprepared)

    @property
    def num_unprepared_bytes(self) -> int:
        """How much data the jobs have that are not prepared yet."""
        return sum(len(active.job.data) for active in self.unprepared)

    @property
    def num_live_rows(self) -> int:
        """How many rows live jobs take; one that isn't prepared yet counts as one."""
        return sum(active.num_open_rows if active.specs else 1 for active in self._live.values())

    @property
    def num_open_bulk_rows(self) -> int:
        """How many rows of a batch all others take together."""
        return self.num_open_rows - sum(active.num_open_rows for active in self._live.values())

    @property
    def rows_per_job(self) -> float:
        """How many rows the prepared jobs have on average; 1 if there are none."""
        counts = [sum(spec.num_rows for spec in active.specs) for active in self._jobs.values() if active.specs]
        return sum(counts) / len(counts) if counts else 1.0

    def add(self, active: ActiveJob) -> None:
        """A job was claimed; it is to be prepared."""
        self._jobs[active.job.execution_id] = active
        if active.job.is_live:
            self._live[active.job.execution_id] = active
            self._unprepared_live.append(active)
        else:
            self._unprepared.append(active)

    def next_unprepared(self, *, only_live: bool = False) -> ActiveJob | None:
        """The next one to prepare; live ones come first."""
        if self._unprepared_live:
            return self._unprepared_live.popleft()
        return self._unprepared.popleft() if self._unprepared and not only_live else None

    def open_rows(self, active: ActiveJob, prepared: PreparedRequest) -> None:
        """A job is prepared: these are its rows."""
        active.open_rows(prepared)
        self.num_open_rows += active.num_open_rows

    def row_ended(self, active: ActiveJob, result: RowResult) -> None:
        """One answer of a job has come to its end."""
        self.num_open_rows -= active.num_open_rows
        active.row_ended(result)
        self.num_open_rows += active.num_open_rows

    def row_refused(self, active: ActiveJob, row_id: RowId) -> None:
        """The engine doesn't take this row of a job: nothing will come of it."""
        self.num_open_rows -= active.num_open_rows
        active.row_refused(row_id)
        self.num_open_rows += active.num_open_rows

    def forget(self, job: ClaimedJob) -> None:
        active = self._jobs.pop(job.execution_id)
        self.num_open_rows -= active.num_open_rows
        self._live.pop(job.execution_id, None)
        for unprepared in (self._unprepared, self._unprepared_live):
            if active in unprepared:
                unprepared.remove(active)

    def of_execution(self, execution_id: str) -> ActiveJob | None:
        """The job that was claimed so, if it is ours."""
        return self._jobs.get(execution_id)

    def of_row(self, row_id: RowId) -> ActiveJob | None:
        """The job that this row belongs to, if it is ours."""
        return self._jobs.get(row_id.request_id)

    def of_rows(self, row_ids: Iterable[RowId]) -> list[ActiveJob]:
        """The jobs of these rows, each once, in the order in which they were claimed."""
        wanted = {row_id.request_id for row_id in row_ids}
        return [active for execution_id, active in self._jobs.items() if execution_id in wanted]
