"""The rows that wait for the batch, and which of them is next: the first that came, or the longest prompt.

Longest first keeps the long prompts out of the end of a run, where they would decode with the batch half empty. So that
no row waits for ever, the one that has waited longest goes first after `PATIENCE` others went ahead of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from mlxq_worker.engine.rows.group import RowGroup

PATIENCE = 128
"""Four full batches of the default width."""


class WaitingQueue:
    """Rows in the order in which they came.

    Args:
        longest_first: take the longest prompt next, and not the first that came.
    """

    def __init__(self, *, longest_first: bool = False) -> None:
        self._longest_first = longest_first
        self._groups: deque[RowGroup] = deque()
        self._num_ahead = 0  # how many rows went ahead of the first one

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[RowGroup]:
        return iter(self._groups)

    def add(self, group: RowGroup) -> None:
        """Put a group at the end."""
        self._groups.append(group)

    @property
    def next(self) -> RowGroup:
        """Who is next; of equally long prompts the first that came."""
        if not self._longest_first or self._num_ahead >= PATIENCE:
            return self._groups[0]
        return max(self._groups, key=lambda group: len(group.spec.prompt_ids))

    def remove(self, group: RowGroup) -> None:
        """Take a group out that goes into the batch."""
        self._num_ahead = 0 if group is self._groups[0] else self._num_ahead + 1
        self._groups.remove(group)

    def drop_finished(self) -> None:
        """Take groups out that have ended while they waited."""
        self._groups = deque(group for group in self._groups if not group.finished)

    def clear(self) -> None:
        self._groups.clear()
