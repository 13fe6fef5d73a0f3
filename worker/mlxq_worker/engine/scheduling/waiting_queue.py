"""The rows that wait for the batch, and which of them is next: the first that came, or the longest prompt.

Longest first keeps the long prompts out of the end of a run, where they would decode with the batch half empty. So that
no row waits for ever, the one that has waited longest goes first after `PATIENCE` others went ahead of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from mlxq_worker.engine.rows.row import Row

PATIENCE = 128
"""Four full batches of the default width."""


class WaitingQueue:
    """Rows in the order in which they came.

    Args:
        longest_first: take the longest prompt next, and not the first that came.
    """

    def __init__(self, *, longest_first: bool = False) -> None:
        self._longest_first = longest_first
        self._rows: deque[Row] = deque()
        self._num_ahead = 0  # how many rows went ahead of the first one

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def add(self, row: Row) -> None:
        """Put a row at the end."""
        self._rows.append(row)

    @property
    def next(self) -> Row:
        """Who is next; of equally long prompts the first that came."""
        if not self._longest_first or self._num_ahead >= PATIENCE:
            return self._rows[0]
        return max(self._rows, key=lambda row: len(row.spec.prompt_ids))

    def remove(self, row: Row) -> None:
        """Take a row out that goes into the batch."""
        self._num_ahead = 0 if row is self._rows[0] else self._num_ahead + 1
        self._rows.remove(row)

    def drop_finished(self) -> None:
        """Take rows out that have ended while they waited."""
        self._rows = deque(row for row in self._rows if not row.finished)

    def clear(self) -> None:
        self._rows.clear()
