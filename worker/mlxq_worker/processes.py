"""Other processes: whether they still live, and how they are ended.

Knows nothing of what they do, and starts none.
"""

from __future__ import annotations

import os
import subprocess
from typing import Any


def is_alive(pid: int) -> bool:
    """Whether there is such a process, ours or anybody's; a zombie counts."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # somebody else's; no pid of this system, of which nothing is known
        return True
    return True


def end_process(process: subprocess.Popen[Any], timeout_s: float) -> None:
    """Ask it to end, and kill it if it hasn't after `timeout_s`. Its end has been waited for then."""
    process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class ParentWatch:
    """Whether another process, usually our parent, still lives."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._is_parent = os.getppid() == pid

    def is_gone(self) -> bool:
        if self._is_parent:
            return os.getppid() != self._pid  # right even while it is a zombie
        return not is_alive(self._pid)
