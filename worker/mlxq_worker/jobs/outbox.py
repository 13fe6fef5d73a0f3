"""What has left a worker's hands and is not in Redis yet: the ends of jobs, and jobs that go back to their queue.

Kept while Redis is away, and written in as few round trips as it takes. Knows nothing of rows or requests. Times are
Unix seconds.
"""

from __future__ import annotations

import logging

from mlxq.logs import fields
from mlxq_worker.jobs.claimed import ClaimedJob
from mlxq_worker.jobs.endings import Ending
from mlxq_worker.jobs.store import JobStore
from mlxq_worker.metrics.job_figures import JobFigures

logger = logging.getLogger("rq.worker")


class Outbox:
    """Ends and returns, until they are written. `num_ended` jobs were; `num_late` ends were of jobs that somebody
    else had by then."""

    def __init__(self, store: JobStore, figures: JobFigures) -> None:
        self._store = store
        self._figures = figures
        self._endings: list[Ending] = []
        self._returns: dict[int, list[ClaimedJob]] = {}
        self.num_ended = 0
        self.num_late = 0

    def __repr__(self) -> str:
        return f"Outbox(endings={len(self._endings)} returns={sum(map(len, self._returns.values()))})"

    @property
    def has_endings(self) -> bool:
        return bool(self._endings)

    def jobs(self) -> list[ClaimedJob]:
        """All jobs in here; Redis still takes them for ours."""
        return [ending.job for ending in self._endings] + [job for jobs in self._returns.values() for job in jobs]

    def end(self, ending: Ending) -> None:
        self._endings.append(ending)

    def give_back(self, jobs: list[ClaimedJob], *, strikes: int) -> None:
        """To the front of their queues, with so many strikes more."""
        self._returns.setdefault(strikes, []).extend(jobs)

    def write(self, now: float) -> int:
        """Ends first, then what goes back to the queue; returns how many jobs that were.

        Raises:
            redis.exceptions.RedisError: what isn't written is still here; call again.
        """
        if self._endings:
            written = self._store.end(self._endings, now)
            for ending, is_written in zip(self._endings, written, strict=True):
                if is_written:
                    self._record(ending)
            self._endings.clear()
            self.num_ended += sum(written)
            self._note_late(written.count(False))
        num_returned = 0
        for strikes, jobs in self._returns.items():
            self._store.release(jobs, now, strikes=strikes)
            self._figures.gave_back(len(jobs), strikes)
            num_returned += len(jobs)
        self._returns.clear()
        return num_returned

    def _record(self, ending: Ending) -> None:
        if ending.times is not None:
            self._figures.answered(ending.finish_reasons, ending.counts, ending.times)
        if ending.outcome == "cancelled":
            self._figures.cancelled()
        elif ending.outcome == "failed":
            self._figures.failed(ending.code)

    def _note_late(self, num_late: int) -> None:
        if num_late:
            self._figures.late(num_late)
            self.num_late += num_late
            logger.warning(
                "Dropped %d results: their jobs weren't ours any more", num_late, extra=fields(num_jobs=num_late)
            )
