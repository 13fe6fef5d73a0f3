"""When a process that has died is started again, and when that makes no sense any more.

Plain arithmetic over deaths: starts nothing and reads no clock.
"""

from __future__ import annotations

from mlxq.errors import WorkerFailed

FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 60.0
HEALTHY_S = 60.0
"""A process that lived this long after it was ready pays for none of the deaths before it."""
MAX_FAILED_STARTS = 5
"""In a row, none of which got as far as being ready. Later deaths are never too many: requests that kill their worker
are given up one by one, and the rest of the queue still wants to be answered."""


class Restarts:
    """The deaths of one process in all its lives."""

    def __init__(self) -> None:
        self._num_deaths = 0
        self._num_failed_starts = 0

    def pause_s(self, ready_s: float | None, death: str) -> float:
        """How long to wait after a death; twice as long after each one in a row.

        Args:
            ready_s: how long the process lived after it was ready; `None` if it never was.
            death: how it died, for the error.

        Raises:
            WorkerFailed: it died too often before it was ready.
        """
        self._num_failed_starts = self._num_failed_starts + 1 if ready_s is None else 0
        if self._num_failed_starts >= MAX_FAILED_STARTS:
            raise WorkerFailed(f"the worker died {self._num_failed_starts} times in a row while it started, {death}")
        is_healthy = ready_s is not None and ready_s >= HEALTHY_S
        self._num_deaths = 1 if is_healthy else self._num_deaths + 1
        return min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self._num_deaths - 1, 16))
