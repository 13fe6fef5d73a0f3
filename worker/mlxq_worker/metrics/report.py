"""How the figures of the process with the model get to the one that looks after it: lines of JSON through a pipe.

The process that writes never waits: a reader that is slow, or gone, costs it nothing but the newest figures. Belongs to
the I/O thread, which hears from the decode thread what that has recorded.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from mlxq.metrics.figures import Snapshot
from mlxq_worker.timing import Every

REPORT_S = 1.0
"""Between two reports, and between two of the decode thread's snapshots for them."""
LONGEST_BYTES = 1 << 20
"""What no report comes near; more than that without an end of line is none."""


class Reporter:
    """The end that writes.

    Args:
        fd: of the pipe, which is ours to close; `None` if nobody wants reports.
        look: what the I/O thread has recorded.
    """

    def __init__(self, fd: int | None, look: Callable[[], Snapshot]) -> None:
        self._fd = fd
        self._look = look
        self._of_decoding = Snapshot()
        self._rest = b""
        self._timer = Every(REPORT_S)
        if fd is not None:
            os.set_blocking(fd, False)

    def hear(self, of_decoding: Snapshot) -> None:
        """The newest of what the decode thread has recorded."""
        self._of_decoding = of_decoding

    def report_if_due(self, now: float) -> None:
        """Once a second. `now` is in seconds on any clock."""
        if self._fd is not None and self._timer.is_due(now):
            self._report()

    def close(self) -> None:
        """Send the last figures, and no more."""
        if self._fd is not None:
            self._report()
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def _report(self) -> None:
        if not self._rest:  # what was begun has to be ended: half a line is none
            self._rest = msgspec.json.encode(self._look().beside(self._of_decoding)) + b"\n"
        try:
            self._rest = self._rest[os.write(self._fd or 0, self._rest) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # whoever looked after us is gone, which `ParentWatch` sees
            os.close(self._fd or 0)
            self._fd = None


class ReportReader:
    """The end that reads. Makes the pipe; `writer_fd` is for the other process, and is closed here once that has it."""

    def __init__(self) -> None:
        self._fd, self.writer_fd = os.pipe()
        os.set_blocking(self._fd, False)
        self._pending = b""

    def read(self) -> Snapshot | None:
        """The newest report since the last look, if one has come."""
        newest = None
        while chunk := self._chunk():
            *lines, self._pending = (self._pending + chunk).split(b"\n")
            if len(self._pending) > LONGEST_BYTES:
                self._pending = b""
            newest = lines[-1] if lines else newest
        if newest is None:
            return None
        try:
            return msgspec.json.decode(newest, type=Snapshot)
        except msgspec.MsgspecError:  # not ours: a library of the model's process may write where it likes
            return None

    def close(self) -> None:
        """Read no more."""
        os.close(self._fd)

    def _chunk(self) -> bytes:
        try:
            return os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return b""
