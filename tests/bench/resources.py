"""What a process takes of the machine, as its kernel tells: memory and processor time, its own and not its children's.

For Linux. Knows nothing of what is measured.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


class Resources:
    """What a process had taken by the last look at it.

    `peak_mb` is the most resident memory that it has held, in MB, and `cpu_s` its processor time, user and system, in
    seconds.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.peak_mb = 0.0
        self.cpu_s = 0.0

    def look(self) -> bool:
        """Returns whether the process still runs. One that has ended can be looked at until somebody waits for it."""
        state, *numbers = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        user, system = numbers[10:12]
        self.cpu_s = (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
        with suppress(KeyError):  # it has ended, and its memory is gone
            self.peak_mb = peak_resident_mib(self._pid) * 2**20 / 1e6
        return state != "Z"


def peak_resident_mib(pid: int) -> float:
    """The most resident memory that the process has held so far, in MiB."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024
