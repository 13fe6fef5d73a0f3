"""What was done to the system and what was seen of it: printed at once, with the time, and counted."""

from __future__ import annotations

import time
from collections import Counter


class Diary:
    """Seconds count from when the diary is opened."""

    def __init__(self) -> None:
        self._opened = time.monotonic()
        self.counts: Counter[str] = Counter()

    @property
    def now_s(self) -> float:
        return time.monotonic() - self._opened

    def note(self, text: str, *, count: str | None = None) -> None:
        """Print a line; `count` names what there is one more of."""
        print(f"{self.now_s:7.1f} s  {text}", flush=True)
        if count is not None:
            self.counts[count] += 1
