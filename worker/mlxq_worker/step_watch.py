"""Whether the decode thread still gets anywhere: a GPU may hang without an error, in a step that never ends or in steps
that bring nothing.

Beside the channel, this is the one object that both threads use: the decode thread says when a step begins and ends,
the I/O thread asks. What one of them writes and the other reads is one attribute, which each call touches once, so
there is nothing to lock. Times are seconds on the monotonic clock, which both threads share. Ends nothing by itself.

Nobody asks while the whole process is stopped, or its machine is, and then no step gets on, either: of a time in which
nobody has asked, no more than a part counts.
"""

from __future__ import annotations

_MOST_UNASKED = 0.25
"""Of the timeout."""


class StepWatch:
    """How long the rows in the engine have been waiting for a token.

    Args:
        timeout_s: rows that get no token for longer than this are stuck.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._waiting_since: float | None = None
        self._asked_at = float("-inf")
        self._asked_about: float | None = None
        self._excused_s = 0.0

    def begin(self, now: float) -> None:
        """A step begins, with rows in the engine."""
        if self._waiting_since is None:
            self._waiting_since = now

    def end(self, *, has_advanced: bool) -> None:
        """It has ended. `has_advanced`: some row got on by it, or nobody waits any more."""
        if has_advanced:
            self._waiting_since = None

    def is_stuck(self, now: float) -> bool:
        """To be asked again and again, several times within the timeout."""
        since, asked_at = self._waiting_since, self._asked_at
        self._asked_at = now
        if since is None:
            return False
        if since != self._asked_about:
            self._asked_about, self._excused_s = since, 0.0
        unasked_s = now - max(since, asked_at)
        self._excused_s += max(0.0, unasked_s - _MOST_UNASKED * self.timeout_s)
        return now - since - self._excused_s > self.timeout_s
