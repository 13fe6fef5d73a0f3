"""What the I/O thread records: how requests ended, how long they took, and what went wrong with jobs and Redis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mlxq.metrics.figures import Figures, Snapshot
from mlxq_worker.metrics import table

MAX_TOKEN_IDS = 64
"""Requests choose which tokens stop them: so many different ones get a label of their own."""
STRUCK_OUT = frozenset({"engine_error", "worker_crashed"})
"""Codes of jobs that have failed on their last strike."""
_STOP = "stop:"
"""How a batch's hash names its counts of stops (`mlxq.keys`)."""


@dataclass(frozen=True, slots=True)
class Times:
    """What a request took, in seconds: before it entered the batch, until its first token, and until its last."""

    queue_s: float
    prefill_s: float
    decode_s: float


class JobFigures:
    """The figures of one worker's jobs."""

    def __init__(self) -> None:
        self._figures = Figures()
        self._token_ids: set[str] = set()
        for code in STRUCK_OUT:  # alerts ask how much these have risen, and don't see one that begins at 1
            self._figures.add(table.FAILURE, 0, code)
        for reason in ("step_raised", "worker_died"):
            self._figures.add(table.RETRIES, 0, reason)

    def answered(self, finish_reasons: Iterable[str], counts: Mapping[str, int], times: Times) -> None:
        """A request has its answers, and they are written. `counts` is what its batch adds up."""
        figures = self._figures
        for reason in finish_reasons:
            figures.add(table.SUCCESS, 1, reason)
        for name, count in counts.items():
            if name.startswith(_STOP):
                stop_type, _, token_id = name.removeprefix(_STOP).partition(":")
                figures.add(table.STOPS, count, stop_type, self._known(token_id))
        figures.observe(table.QUEUE_TIME, times.queue_s)
        figures.observe(table.PREFILL_TIME, times.prefill_s)
        figures.observe(table.DECODE_TIME, times.decode_s)
        figures.observe(table.FIRST_TOKEN, times.queue_s + times.prefill_s)
        figures.observe(table.E2E, times.queue_s + times.prefill_s + times.decode_s)

    def failed(self, code: str) -> None:
        """A request has failed, and that is written."""
        self._figures.add(table.FAILURE, 1, code)
        if code in STRUCK_OUT:
            self._figures.add(table.STRIKES)

    def cancelled(self) -> None:
        """A request was cancelled, and that is written."""
        self._figures.add(table.CANCELLED)

    def late(self, num_results: int) -> None:
        """So many results came when their jobs weren't ours any more."""
        self._figures.add(table.LATE_RESULTS, num_results)

    def lost(self) -> None:
        """Somebody else has taken a job of ours."""
        self._figures.add(table.LEASES_LOST)

    def gave_back(self, num_jobs: int, strikes: int) -> None:
        """So many jobs went back to their queues, each with so many strikes."""
        if strikes:
            self._figures.add(table.RETRIES, num_jobs, "step_raised")
            self._figures.add(table.STRIKES, num_jobs * strikes)
        else:
            self._figures.add(table.RETURNED, num_jobs)

    def recovered(self, num_jobs: int) -> None:
        """So many jobs of workers that died go back to their queues, each with a strike."""
        if num_jobs:
            self._figures.add(table.RETRIES, num_jobs, "worker_died")
            self._figures.add(table.STRIKES, num_jobs)

    def redis_answers(self) -> None:
        """It did what it was asked."""
        self._figures.set(table.WORKER_REDIS_UP, 1)

    def redis_failed(self) -> None:
        """It didn't, and is tried again."""
        self._figures.set(table.WORKER_REDIS_UP, 0)
        self._figures.add(table.REDIS_ERRORS)

    def snapshot(self, num_active: int) -> Snapshot:
        """All of it, with how many jobs are active now."""
        self._figures.set(table.ACTIVE_JOBS, num_active)
        return self._figures.snapshot()

    def _known(self, token_id: str) -> str:
        if len(self._token_ids) < MAX_TOKEN_IDS:
            self._token_ids.add(token_id)
        return token_id if token_id in self._token_ids else "other"
