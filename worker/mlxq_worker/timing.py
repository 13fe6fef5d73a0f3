"""Periods and durations on a clock that may jump: wall time is what Redis's leases are measured in, and it gets
corrected.

Knows nothing of what is due, or done.
"""

from __future__ import annotations


class Every:
    """Says when something is due again; a clock that jumps back makes it due."""

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._pause_s = period_s
        self._last = 0.0

    def is_due(self, now: float) -> bool:
        if 0 <= now - self._last < self._pause_s:
            return False
        self._last, self._pause_s = now, self._period_s
        return True

    def left_s(self, now: float) -> float:
        return max(0.0, self._last + self._pause_s - now)

    def postpone(self, now: float, pause_s: float) -> None:
        """Not before `pause_s` from now, nor earlier than it was due anyway; after that in the usual rhythm."""
        self._last, self._pause_s = now, max(pause_s, self.left_s(now))


class WorkingTime:
    """Adds up for how long something was being done, however much of it at once. `seconds` only rises."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def look(self, is_working: bool, now: float) -> None:
        """It is being done from now on, or it isn't."""
        if self._since is not None:
            self.seconds += max(0.0, now - self._since)
        self._since = now if is_working else None
