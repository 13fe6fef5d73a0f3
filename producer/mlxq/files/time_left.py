"""How much longer a run takes: from how fast requests have ended, and how long the last answers have taken.

The rate is that of the last half of the run, since answers of mixed lengths come in fits and starts. It holds as long
as rows that end are followed by others. Then the batch runs empty, ever slower, and in the end waits for its longest
row: how long that takes follows from how service times are spread. Where a few are far longer than the rest that is a
guess, which `tests/bench/time_left.py` holds beside the best that there is. Knows no clocks and shows nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

MIN_WINDOW_S = 30.0
MAX_SAMPLES = 512
_LAST_ROW = math.log(2)
"""Rows that are expected to be left when the last one ends as likely as not."""


class TimeLeft:
    """Takes samples of a run as it goes."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, int]] = []  # when, and how many had ended

    def update(self, now: float, num_ended: int) -> None:
        """So many requests have ended by now, without those that were skipped."""
        self._samples.append((now, num_ended))
        if len(self._samples) > MAX_SAMPLES:
            del self._samples[-2 : -MAX_SAMPLES // 2 : -2]  # of the newer half every other one

    def estimate_s(self, num_left: int, service_s: Sequence[float]) -> float | None:
        """Seconds until `num_left` more have ended; `None` as long as nothing tells.

        Args:
            service_s: how long some answers have taken.
        """
        rate = self._rate()
        if rate <= 0:
            return None
        mean_s = sum(service_s) / len(service_s) if service_s else 0.0
        num_rows = rate * mean_s  # that run at a time: Little's law
        if num_rows < 1:
            return num_left / rate
        until_empty_s = max(0.0, num_left - num_rows) / rate
        spread = _Residual(service_s)
        whole_s, gone_s = spread.at(_LAST_ROW / num_rows), spread.at(min(1.0, num_left / num_rows))
        return until_empty_s + max(0.0, whole_s - gone_s)

    def _rate(self) -> float:
        """Requests a second."""
        if len(self._samples) < 2:
            return 0.0
        last, num_last = self._samples[-1]
        began = next((when for (when, before), (_, after) in pairwise(self._samples) if after > before), last)
        since = min(last - MIN_WINDOW_S, (began + last) / 2)
        first, num_first = next(sample for sample in self._samples if sample[0] >= max(since, began))
        return (num_last - num_first) / (last - first) if last > first else 0.0


class _Residual:
    """How long rows that run still take, where rows follow one another and these are how long they take in all."""

    def __init__(self, service_s: Sequence[float]) -> None:
        self._falling = sorted(service_s, reverse=True)
        self._total = sum(service_s)

    def at(self, share: float) -> float:
        """The seconds after which this share of them still runs."""
        wanted, above = share * self._total, 0.0
        for count, (longer, shorter) in enumerate(pairwise([*self._falling, 0.0]), start=1):
            # Between the two, `count` rows shorten the sum of what is beyond by a second for each second.
            if above + count * (longer - shorter) >= wanted:
                return longer - (wanted - above) / count
            above += count * (longer - shorter)
        return 0.0
