"""What live answers have grown by, on its way to those who read along.

Written a few times a second, all together, and never waited for: whoever reads too slowly, or not at all, costs the
worker nothing. What gets lost here comes with the whole answer. Times are Unix seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import msgspec
from redis.exceptions import RedisError

from mlxq_worker.engine.api import Part, RowPiece
from mlxq_worker.jobs.active import ActiveJobs
from mlxq_worker.jobs.store import JobStore
from mlxq_worker.timing import Every

logger = logging.getLogger("rq.worker")

WRITE_S = 0.02
"""Between two times at which something is written."""


class Streams:
    """Of the active jobs that are streamed."""

    def __init__(self, store: JobStore, active: ActiveJobs) -> None:
        self._store = store
        self._active = active
        self._write_timer = Every(WRITE_S)
        # By execution: for each choice and part where it begins, and its text.
        self._pending: dict[str, dict[tuple[int, Part], tuple[int, str]]] = {}

    def take(self, pieces: Iterable[RowPiece]) -> None:
        """Keep some text until it is time to write."""
        for piece in pieces:
            parts = self._pending.setdefault(piece.row_id.request_id, {})
            start, text = parts.get((piece.row_id.index, piece.part), (piece.start, ""))
            parts[piece.row_id.index, piece.part] = (start, text + piece.text)

    def write_if_due(self, now: float) -> None:
        """Write what there is of jobs that are still ours."""
        if not self._pending or not self._write_timer.is_due(now):
            return
        pending, self._pending = self._pending, {}
        entries, executions = {}, {}
        for execution_id, parts in pending.items():
            if active := self._active.of_execution(execution_id):
                told = [[index, part, start, text] for (index, part), (start, text) in parts.items()]
                entries[active.job.job_id] = msgspec.json.encode(told)
                executions[active.job.job_id] = execution_id
        if not entries:
            return
        try:
            self._store.stream(entries, executions)
        except RedisError as error:  # whoever has to write an answer next waits for it to come back
            logger.debug("What %d live answers have grown by is lost: %s", len(entries), error)

    def wait_s(self, now: float) -> float:
        """How long there is nothing to write."""
        return self._write_timer.left_s(now) if self._pending else float("inf")
