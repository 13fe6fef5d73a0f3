"""Whether the worker takes more memory than it may, and whether an error says that there was none left.

Measured, not reckoned: what the budget of the engine admits is an estimate that leaves the forward pass out. Knows no
rows and stops nothing. The part for macOS has not been run there.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from mlxq_worker.timing import Every

Level = Literal["fine", "over", "far over"]

LOOK_S = 1.0
FAR = 1.2
"""So many times the limit is more than a passing peak."""

_STATM = Path("/proc/self/statm")
_RUSAGE_INFO_V0 = 0
_FOOTPRINT_AT, _RUSAGE_INFO_BYTES = 72, 96
"""Of `rusage_info_v0` in <sys/resource.h>: a UUID of 16 bytes and ten 64-bit numbers, the eighth the footprint."""
_ALLOCATION_FAILURES = (
    "[metal::malloc]",
    "[malloc",
    "Unable to allocate",
    "std::bad_alloc",
    "Insufficient Memory",
    "out of memory",
)
"""What MLX's errors contain, in the words of its allocators, of Metal and of CUDA."""
_TOO_MANY_BUFFERS = "Resource limit"
"""What MLX says when Metal has no handle left for a further buffer, however small (mlx-lm#1871)."""


class MemoryWatch:
    """Compares what is used with what may be.

    Args:
        used_bytes: measures it.
        limit_bytes: `None` for no limit.
        release: gives back what is kept for reuse only; what is used without that is what counts.
    """

    def __init__(
        self, used_bytes: Callable[[], int], limit_bytes: int | None, release: Callable[[], None] = lambda: None
    ) -> None:
        self._used_bytes = used_bytes
        self._limit_bytes = limit_bytes
        self._release = release
        self._timer = Every(LOOK_S)
        self.last_bytes = 0

    @property
    def limit_bytes(self) -> int | None:
        """What may be used; `None` for no limit."""
        return self._limit_bytes

    def __repr__(self) -> str:
        limit = "no limit" if self._limit_bytes is None else f"{self._limit_bytes / 2**20:.0f} MiB"
        return f"MemoryWatch({self.last_bytes / 2**20:.0f} MiB, {limit})"

    def level(self, now: float) -> Level:
        """How it stands; ``fine`` between two looks."""
        if self._limit_bytes is None or not self._timer.is_due(now):
            return "fine"
        self.last_bytes = self._used_bytes()
        if self.last_bytes > self._limit_bytes:
            self._release()
            self.last_bytes = self._used_bytes()
        if self.last_bytes <= self._limit_bytes:
            return "fine"
        return "far over" if self.last_bytes > FAR * self._limit_bytes else "over"


def no_limit() -> MemoryWatch:
    """A watch that never minds."""
    return MemoryWatch(lambda: 0, None)


def is_allocation_failure(error: BaseException) -> bool:
    """Whether this error says that memory ran out. MLX raises a plain RuntimeError."""
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError) or is_out_of_buffers(error):
        return False
    return any(words in str(error) for words in _ALLOCATION_FAILURES)


def is_out_of_buffers(error: BaseException) -> bool:
    """Whether this error says that the process holds more buffers than Metal has handles. That is a leak, which no
    smaller batch helps against and no request is to blame for; a fresh process has all handles again."""
    return isinstance(error, RuntimeError) and _TOO_MANY_BUFFERS in str(error)


def resident_bytes() -> int:
    """What this process takes of the machine's memory right now."""
    if sys.platform == "darwin":
        return _footprint_bytes()  # not run on Metal
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _footprint_bytes() -> int:
    """What macOS's Activity Monitor shows, memory that only the GPU maps included. Not run on Metal."""
    info = ctypes.create_string_buffer(_RUSAGE_INFO_BYTES)
    if ctypes.CDLL(None).proc_pid_rusage(os.getpid(), _RUSAGE_INFO_V0, ctypes.byref(info)) != 0:
        return 0
    return ctypes.c_uint64.from_buffer(info, _FOOTPRINT_AT).value
