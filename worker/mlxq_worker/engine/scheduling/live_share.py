"""Whose turn it is where rows that somebody waits for and rows of bulk work both wait.

Live rows go first, and no row is interrupted for them. While bulk work waits, they take up three quarters of the batch
at most, and at least one row; the rest stays bulk work's. Where they would fill the batch all the same, since it has
room for one or two rows only, a bulk row enters after three live ones. So of live rows that wait, the first enters as
soon as any row ends, and bulk work goes on. Plain Python; knows no rows.
"""

from __future__ import annotations

from mlxq_worker.engine.api import most_live_rows

MAX_IN_A_ROW = 3
"""Live rows that enter one after another while bulk work waits and has no row in the batch."""


class LiveShare:
    """Counts who has entered."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def is_live_next(self, num_live: int, num_bulk: int, width: int) -> bool:
        """Whether a live row enters next, now that rows of both kinds wait.

        Args:
            num_live: live rows that run, beside `num_bulk` others.
            width: how many rows may run.
        """
        if num_live >= most_live_rows(width):
            return False
        return num_bulk > 0 or self._in_a_row < MAX_IN_A_ROW

    def entered(self, *, is_live: bool) -> None:
        """A row has entered the batch."""
        self._in_a_row = self._in_a_row + 1 if is_live else 0
