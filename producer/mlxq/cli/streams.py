"""The standard streams of the process, as a shell may have left them: some may be closed.

A closed one is opened on /dev/null. Otherwise the next file that is opened, maybe one of answers, would get its number,
and whatever writes to standard error would write there, a worker's process too.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def open_closed_streams() -> None:
    """Make sure that descriptors 0, 1 and 2 are taken, and that standard output and error can be written to. That
    standard input is missing stays known: `sys.stdin` is `None`."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - open as long as the process
