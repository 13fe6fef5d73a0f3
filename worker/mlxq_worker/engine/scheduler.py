"""Decides who is dropped, admitted and decoded on a step (`schedule`), and gives rows their tokens (`commit`).

Plain Python over `Row` objects: no arrays, so every decision can be tested without a model. Rows are admitted in
the order in which they arrived.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from mlxq_worker.engine.api import AbortReason
from mlxq_worker.engine.row import Row, RowResult


@dataclass(frozen=True, slots=True)
class Plan:
    """One decode step. `kept` are the rows that stay from the last plan, in their old order; `joining` need
    their prompts prefilled first. The decode batch is `kept` followed by `joining`."""

    kept: tuple[Row, ...]
    joining: tuple[Row, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        return self.kept + self.joining


class Scheduler:
    """The waiting line and the running batch of at most `max_num_seqs` rows.

    A row is *running* from its admission to its end. The decode batch holds the running rows that still want a
    token: one whose last permitted token is already on its way frees its place a step before it ends.
    """

    def __init__(self, max_num_seqs: int) -> None:
        self._max_num_seqs = max_num_seqs
        self._waiting: deque[Row] = deque()
        self._running: list[Row] = []
        self._batch: tuple[Row, ...] = ()

    def __repr__(self) -> str:
        return f"Scheduler(running={self.num_running}/{self._max_num_seqs} waiting={self.num_waiting})"

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def free_rows(self) -> int:
        """How many more rows could decode at once, the waiting ones counted as if they did."""
        wanting = sum(row.wants_token for row in self._running)
        return max(0, self._max_num_seqs - wanting - len(self._waiting))

    def add(self, row: Row) -> None:
        """Put a row at the end of the waiting line."""
        self._waiting.append(row)

    def abort(self, row_id: str, reason: AbortReason) -> None:
        """Mark a row to be dropped at the next `schedule`; the first reason stays."""
        for row in (*self._running, *self._waiting):
            if row.spec.row_id == row_id and row.abort_reason is None:
                row.abort_reason = reason

    def schedule(self, now: float) -> tuple[Plan, list[RowResult]]:
        """Drop what was cancelled or is overdue, fill the free places, and plan the next decode step."""
        dropped = self._drop(now)
        kept = tuple(row for row in self._batch if row.wants_token)
        joining = tuple(self._admit(self._max_num_seqs - len(kept), now))
        plan = Plan(kept, joining)
        for row in plan.rows:
            row.num_scheduled += 1
        self._batch = plan.rows
        return plan, dropped

    def commit(self, rows: Sequence[Row], token_ids: Sequence[int], now: float) -> list[RowResult]:
        """Give each row the token that came back for it; rows that ended in the meantime discard theirs.

        Returns:
            The results of the rows that this step ended.
        """
        finished = []
        for row, token_id in zip(rows, token_ids, strict=True):
            if row.finished:
                continue
            row.commit(token_id, now)
            if row.result:
                finished.append(row.result)
        self._running = [row for row in self._running if not row.finished]
        return finished

    def clear(self) -> None:
        """Forget every row."""
        self._waiting.clear()
        self._running.clear()
        self._batch = ()

    def _admit(self, places: int, now: float) -> list[Row]:
        joining = [self._waiting.popleft() for _ in range(min(places, len(self._waiting)))]
        for row in joining:
            row.admit(now)
        self._running.extend(joining)
        return joining

    def _drop(self, now: float) -> list[RowResult]:
        dropped = []
        for row in (*self._running, *self._waiting):
            reason: AbortReason | None = row.abort_reason or ("deadline" if row.overdue(now) else None)
            if reason:
                row.abort(reason, now)
                assert row.result is not None
                dropped.append(row.result)
        if dropped:
            self._running = [row for row in self._running if not row.finished]
            self._waiting = deque(row for row in self._waiting if not row.finished)
        return dropped
