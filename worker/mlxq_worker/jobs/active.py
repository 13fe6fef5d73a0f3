"""The jobs that a worker holds, and the rows that each has become: what is prepared, and what has ended.

A request becomes one row, n rows (`n` answers), or one beam search, whose hypotheses end as rows do. Its job is at its
end once all of them are. Sends nothing to Redis, and knows no engine and no clock.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from mlxq.contract import Request
from mlxq_worker.engine.api import RowId, RowResult, RowSpec
from mlxq_worker.jobs import endings
from mlxq_worker.jobs.claimed import Claimed
from mlxq_worker.jobs.endings import CancelledAs, Ending
from mlxq_worker.messages import Preparer
from mlxq_worker.traces import trace_of

logger = logging.getLogger("rq.worker")


@dataclass(slots=True, eq=False)
class Held:
    """A job that is ours. `request` and `specs` are there once it is prepared, and the decode thread has it.

    `open_ids` are the row ids of the answers that are still to come, `results` those that came. `failure` is how the
    job ends in place of an answer, once nothing of it is open.
    """

    job: Claimed
    request: Request | None = None
    specs: tuple[RowSpec, ...] = ()
    cancelled_as: CancelledAs | None = None
    failure: Ending | None = None
    open_ids: set[RowId] = field(default_factory=set)
    results: dict[RowId, RowResult] = field(default_factory=dict)

    @property
    def row_ids(self) -> tuple[RowId, ...]:
        """The rows as the engine was given them."""
        return tuple(spec.row_id for spec in self.specs)

    @property
    def num_open_rows(self) -> int:
        """How many rows of a batch this job still takes."""
        return sum(spec.num_rows for spec in self.specs if spec.row_id in self.open_ids)

    def prepared(self, request: Request, specs: tuple[RowSpec, ...]) -> None:
        self.request, self.specs = request, specs
        self.open_ids = {row_id for spec in specs for row_id in spec.answer_ids}

    def take(self, result: RowResult) -> None:
        """One answer has come to its end."""
        self.results[result.row_id] = result
        self.open_ids.discard(result.row_id)

    def refused(self, row_id: RowId) -> None:
        """The engine doesn't take this row: nothing will come of it."""
        for spec in self.specs:
            if spec.row_id == row_id:
                self.open_ids.difference_update(spec.answer_ids)

    def ending(self, preparer: Preparer, now: float) -> Ending:
        """How the job ends, now that nothing of it is open. `now` is in Unix seconds."""
        if self.failure is not None:
            return self.failure
        assert self.request is not None, "rows end only after they were prepared"
        results = self._answers()
        decoded_s = max(result.prefill_s + result.decode_s for result in results)
        queue_s = max(0.0, now - self.job.enqueued_at - decoded_s)
        try:
            answer = preparer.finish(
                self.request, self.specs, results, request_id=self.job.job_id, created=int(now), queue_s=queue_s
            )
            return endings.answered(self.job, answer, self.cancelled_as)
        except Exception as error:  # noqa: BLE001 - whatever it is, it costs this job only
            logger.error("The answer to job %s can't be built: %s", self.job.job_id, trace_of(error))
            return endings.gave_up(self.job, "internal_error", f"the answer can't be built: {error}")

    def _answers(self) -> tuple[RowResult, ...]:
        """What came of each answer, in the order of the choices."""
        ids = [row_id for spec in self.specs for row_id in spec.answer_ids]
        return tuple(self.results[row_id] for row_id in ids)


class HeldJobs:
    """All jobs that are held, in the order in which they were claimed. `num_open_rows` is how many rows of a batch they
    take together; it is counted along, since every turn asks for it."""

    def __init__(self) -> None:
        self._jobs: dict[str, Held] = {}
        self._unprepared: deque[Held] = deque()
        self.num_open_rows = 0

    def __repr__(self) -> str:
        return f"HeldJobs({len(self)} jobs, {self.num_unprepared} unprepared, {self.num_open_rows} open rows)"

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Held]:
        """Over a copy: the jobs may be forgotten on the way."""
        return iter(list(self._jobs.values()))

    @property
    def unprepared(self) -> tuple[Held, ...]:
        return tuple(self._unprepared)

    @property
    def num_unprepared(self) -> int:
        return len(self._unprepared)

    @property
    def rows_per_job(self) -> float:
        """How many rows the prepared jobs have on average; 1 if there are none."""
        counts = [sum(spec.num_rows for spec in held.specs) for held in self._jobs.values() if held.specs]
        return sum(counts) / len(counts) if counts else 1.0

    def add(self, held: Held) -> None:
        """A job was claimed; it is to be prepared."""
        self._jobs[held.job.execution_id] = held
        self._unprepared.append(held)

    def next_unprepared(self) -> Held | None:
        return self._unprepared.popleft() if self._unprepared else None

    def prepared(self, held: Held, request: Request, specs: tuple[RowSpec, ...]) -> None:
        """These are the rows of a job."""
        held.prepared(request, specs)
        self.num_open_rows += held.num_open_rows

    def take(self, held: Held, result: RowResult) -> None:
        """One answer of a job has come to its end."""
        self.num_open_rows -= held.num_open_rows
        held.take(result)
        self.num_open_rows += held.num_open_rows

    def refused(self, held: Held, row_id: RowId) -> None:
        """The engine doesn't take this row of a job: nothing will come of it."""
        self.num_open_rows -= held.num_open_rows
        held.refused(row_id)
        self.num_open_rows += held.num_open_rows

    def forget(self, job: Claimed) -> None:
        held = self._jobs.pop(job.execution_id)
        self.num_open_rows -= held.num_open_rows
        if held in self._unprepared:
            self._unprepared.remove(held)

    def of_row(self, row_id: RowId) -> Held | None:
        """The job that this row belongs to, if we hold it."""
        return self._jobs.get(row_id.request_id)

    def of_rows(self, row_ids: Iterable[RowId]) -> list[Held]:
        """The jobs of these rows, each once, in the order in which they were claimed."""
        wanted = {row_id.request_id for row_id in row_ids}
        return [held for execution_id, held in self._jobs.items() if execution_id in wanted]
