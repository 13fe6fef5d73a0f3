"""Whether the decode thread still gets anywhere: a GPU may hang without an error, in a step that never ends or in steps
that bring nothing.

Beside the channel, this is the one object that both threads use: the decode thread says when a step begins and ends,
the I/O thread asks. Each call touches one attribute once, so there is nothing to lock. Times are seconds on the
monotonic clock, which both threads share. Ends nothing by itself.
"""

from __future__ import annotations


class StepWatch:
    """How long the rows in the engine have been waiting for a token.

    Args:
        timeout_s: rows that get no token for longer than this are stuck.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._waiting_since: float | None = None

    def begin(self, now: float) -> None:
        """A step begins, with rows in the engine."""
        if self._waiting_since is None:
            self._waiting_since = now

    def end(self, *, has_advanced: bool) -> None:
        """It has ended. `has_advanced`: some row got on by it, or nobody waits any more."""
        if has_advanced:
            self._waiting_since = None

    def is_stuck(self, now: float) -> bool:
        since = self._waiting_since
        return since is not None and now - since > self.timeout_s
