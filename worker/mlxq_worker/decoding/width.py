"""How many rows may be in the engine at once, when memory turned out shorter than the budget had it.

Halved by every shortage and doubled again after a calm while. It grows back because most shortages pass: another
program wanted the memory, or a few long rows met; a night's run that had one at one o'clock should not crawl until
morning. Each new shortage doubles the while, so that one that doesn't pass costs a thrown away batch ever more rarely.
Plain arithmetic, times in seconds on the monotonic clock.
"""

from __future__ import annotations

CALM_S = 300.0
MAX_CALM_S = 6 * 3600.0


class Width:
    """Args: max_rows: what it is while there is no shortage."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._calm_s = CALM_S
        self._has_grown = False
        self._changed_at = 0.0
        self.rows = max_rows

    def __repr__(self) -> str:
        return f"Width({self.rows}/{self._max_rows})"

    @property
    def is_shrunk(self) -> bool:
        return self.rows < self._max_rows

    def shrink(self, num_rows: int, now: float) -> None:
        """Memory ran short with so many rows: half of them, at least one."""
        self.rows = max(1, min(self.rows, num_rows) // 2)
        if self._has_grown:  # else it is still the same shortage
            self._calm_s = min(MAX_CALM_S, 2 * self._calm_s)
            self._has_grown = False
        self._changed_at = now

    def grow(self, now: float) -> None:
        """Double it if it has been calm for long enough."""
        if self.is_shrunk and now - self._changed_at >= self._calm_s:
            self.rows = min(self._max_rows, 2 * self.rows)
            self._has_grown = True
            self._changed_at = now

    def restore(self) -> None:
        """It wasn't the width: one row alone was too much."""
        self.rows = self._max_rows
