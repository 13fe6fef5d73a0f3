"""Whether the decode thread still gets anywhere: a GPU may hang without an error, in a step that never ends.

Beside the channel, this is the one object that both threads use: the decode thread says when a step begins and ends,
the I/O thread asks. Each call touches one attribute once, so there is nothing to lock. Times are seconds on the
monotonic clock, which both threads share. Ends nothing by itself.
"""

from __future__ import annotations


class StepWatch:
    """How long the step that runs now has been running.

    Args:
        timeout_s: a step that takes longer than this counts as stuck.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._began: float | None = None

    def begin(self, now: float) -> None:
        self._began = now

    def end(self) -> None:
        self._began = None

    def is_stuck(self, now: float) -> bool:
        began = self._began
        return began is not None and now - began > self.timeout_s
