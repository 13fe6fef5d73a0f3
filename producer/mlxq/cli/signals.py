"""Lets a long command end in order: the first SIGINT or SIGTERM sets a flag, the second one ends it at once.

In the end the process dies by the signal that it got, as if it had not caught it: a shell then ends its loop, too, and
nobody takes an interruption for a failure.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """True once the user, or the system, has asked to stop. Works in the main thread, as a context manager."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self._signal is not None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def pass_on(self) -> None:
        """End the process by the signal that asked to stop, now that all is cleaned up; does nothing if none did."""
        if self._signal is not None:
            die_by(self._signal)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self._signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def die_by(number: int) -> None:
    """End this process as the signal does that nobody has caught."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or none at all
            stream.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
