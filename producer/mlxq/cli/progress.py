"""Shows how a run goes, on stderr: a bar where that is a terminal, else a plain line every ten seconds.

Sees a `Tally` and a note; decides nothing.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Column

from mlxq.cli.terminal import tell
from mlxq.files.tally import Tally
from mlxq.files.time_left import TimeLeft

LOG_EVERY_S = 10.0
DRAW_EVERY_S = 0.2
RATE_WINDOW_S = 30.0
MIN_BAR_COLUMNS = 30


Note = Callable[[], str]
"""What there is to say beside the numbers, now."""


def _no_note() -> str:
    return ""


@dataclass(frozen=True, slots=True)
class _Sample:
    time_s: float
    num_ended: int
    num_tokens: int


class RateMeter:
    """Requests and tokens per second over the last half minute, and how long the rest takes."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque()
        self._time_left = TimeLeft()

    def update(self, tally: Tally, now: float) -> None:
        """Take a sample; requests that were skipped don't count."""
        self._samples.append(_Sample(now, tally.succeeded + tally.cut + tally.failed, tally.completion_tokens))
        self._time_left.update(now, self._samples[-1].num_ended)
        while now - self._samples[0].time_s > RATE_WINDOW_S:
            self._samples.popleft()

    @property
    def is_known(self) -> bool:
        """Whether the rates say anything yet: there are two samples, and something has ended before the last."""
        return len(self._samples) >= 2 and self._samples[-1].num_ended > 0

    @property
    def requests_per_s(self) -> float:
        """0 until there are two samples."""
        return self._per_s(lambda sample: sample.num_ended)

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens; 0 until there are two samples."""
        return self._per_s(lambda sample: sample.num_tokens)

    def left_s(self, tally: Tally, total: int) -> float | None:
        """Seconds until so many requests have ended; `None` as long as nothing tells."""
        return self._time_left.estimate_s(max(0, total - tally.num_done), tally.service_s)

    def _per_s(self, count: Callable[[_Sample], int]) -> float:
        if len(self._samples) < 2:
            return 0.0
        first, last = self._samples[0], self._samples[-1]
        return (count(last) - count(first)) / max(1e-9, last.time_s - first.time_s)


class Display(Protocol):
    """What a command needs of a progress display."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def update(self, tally: Tally, note: Note = ...) -> None:
        """Show the counts as of now; cheap enough for every turn, as `note` is asked only when it is shown."""


def progress(total: int | None) -> Display:
    """The display that suits stderr.

    Args:
        total: requests in the input, where that is known; shows the time left.
    """
    console = Console(stderr=True)
    can_redraw = sys.stderr.isatty() and not console.is_dumb_terminal
    return Bar(total) if can_redraw and console.width >= MIN_BAR_COLUMNS else Log(total)


class Bar:
    """A bar that is redrawn in place and vanishes at the end."""

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._meter = RateMeter()
        self._drawn = 0.0
        console = Console(stderr=True)
        text = Column(no_wrap=True, overflow="ellipsis", ratio=1)  # the rest of the one line that there is
        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=min(30, console.width // 6)),
            MofNCompleteColumn(),
            TextColumn("{task.description}", markup=False, table_column=text),
            console=console,
            transient=True,
            expand=True,
        )
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, tally: Tally, note: Note = _no_note) -> None:
        """Redraw, a few times a second at most."""
        now = time.monotonic()
        if now - self._drawn >= DRAW_EVERY_S:
            self._drawn = now
            self._meter.update(tally, now)
            text = describe(tally, self._meter, self._total, note())
            self._bar.update(self._task, completed=tally.num_done, description=text)


class Log:
    """A line now and then, for logs and pipes."""

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._meter = RateMeter()
        self._logged = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None

    def update(self, tally: Tally, note: Note = _no_note) -> None:
        """Print a line if the last one is ten seconds old."""
        now = time.monotonic()
        self._meter.update(tally, now)
        if now - self._logged >= LOG_EVERY_S:
            self._logged = now
            of_total = "" if self._total is None else f"/{self._total:,}"
            text = describe(tally, self._meter, self._total, note())
            tell(", ".join(filter(None, (f"{tally.num_done:,}{of_total} requests", text))))


def describe(tally: Tally, meter: RateMeter, total: int | None, note: str) -> str:
    """The rates once they are known, what has no answer, and the time left or the note."""
    parts = [f"{meter.requests_per_s:.1f} requests/s", f"{meter.tokens_per_s:,.0f} tokens/s"] if meter.is_known else []
    if tally.failed:
        parts.append(f"{tally.failed:,} failed")
    if tally.cut:
        parts.append(f"{tally.cut:,} in part")
    if tally.cancelled:
        parts.append(f"{tally.cancelled:,} cancelled")
    if note:
        parts.append(note)
    elif total is not None and (left_s := meter.left_s(tally, total)) is not None:
        parts.append(f"{duration(left_s)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """``8 s``, ``3:05`` or ``2:03:05``."""
    minutes, secs = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{secs:02}"
    return f"{minutes}:{secs:02}" if minutes else f"{secs} s"
