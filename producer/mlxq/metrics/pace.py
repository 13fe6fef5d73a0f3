"""How fast a count rises, and how long what is left will take: the reckoning behind every rate that is shown live.

Plain arithmetic over samples; reads no clock, and knows nothing of what is counted.
"""

from __future__ import annotations

from collections import deque

WINDOW_S = 30.0


class Pace:
    """The pace of one count that only rises, over the last half minute.

    Args:
        window_s: older samples are forgotten, but for the last two.
    """

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._samples: deque[tuple[float, float]] = deque()

    def update(self, count: float, now: float) -> None:
        """It stands at `count` at `now` seconds. One that has fallen begins anew."""
        if self._samples and count < self._samples[-1][1]:
            self._samples.clear()
        self._samples.append((now, count))
        while len(self._samples) > 2 and now - self._samples[0][0] > self._window_s:
            self._samples.popleft()

    def per_s(self) -> float | None:
        """How many a second; `None` before there are two samples."""
        if len(self._samples) < 2:
            return None
        (began, first), (ended, last) = self._samples[0], self._samples[-1]
        return (last - first) / (ended - began) if ended > began else None

    def left_s(self, num_left: float) -> float | None:
        """How long so many more will take at this pace; `None` where that can't be told."""
        if num_left <= 0:
            return 0.0
        rate = self.per_s()
        return num_left / rate if rate else None
