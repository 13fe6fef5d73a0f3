"""Files on a disk that may fill up, lose power, or be wanted by two runs at once: locks, whole writes, forced writes.

What fails raises, and says so to the caller. Knows nothing of what the files hold.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from mlxq.errors import FileInUse, InputFileError
from mlxq.files.paths import file_errors


def open_locked(path: Path, flags: int) -> int:
    """A descriptor of a file that no other run has open so; the lock ends with the process. What isn't a regular file
    is not locked.

    Args:
        flags: those of `os.open`.

    Raises:
        FileInUse: another run is using the file.
        InputFileError: it can't be opened.
    """
    with file_errors(path, "open"):
        fd = os.open(path, flags, 0o666)
        try:
            if is_regular(fd):
                _lock(fd, path)
        except BaseException:
            os.close(fd)
            raise
    return fd


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FileInUse(f"{path} is in use by another run") from error
    # `replace_file` of another run may have put a new file in its place between opening and locking.
    if os.fstat(fd).st_ino != path.stat().st_ino:
        raise InputFileError(f"{path} was replaced by another run just now; try again")


def is_regular(fd: int) -> bool:
    """Whether a descriptor is of a file, rather than of a pipe or a device."""
    return stat.S_ISREG(os.fstat(fd).st_mode)


def write_all(fd: int, data: bytes) -> None:
    """Write all of it, in as many calls as that takes; a part of it may be written when this raises."""
    written = 0
    while written < len(data):
        written += os.write(fd, data[written:])


def replace_file(target: Path, write: Callable[[BinaryIO], None]) -> None:
    """Replace a file's content in one atomic step, keeping its permissions; after a power cut it is the old or the new.
    A file that isn't there comes into being.

    Args:
        target: no link, which would itself be replaced.
        write: writes the new content.
    """
    with contextlib.ExitStack() as cleanup:
        # Made next to the target: a rename is atomic within one file system only.
        fd, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        cleanup.callback(Path(name).unlink, missing_ok=True)
        with os.fdopen(fd, "wb") as out:
            write(out)
            out.flush()
            force_to_disk(out.fileno())
        if target.exists():
            shutil.copymode(target, name)
        else:
            Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(target)
        sync_directory(target)


def _umask() -> int:
    """There is no way to ask for it but to set it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def sync_directory(path: Path) -> None:
    """Make a file's name as durable as its content."""
    fd = os.open(path.parent, os.O_RDONLY)
    try:
        force_to_disk(fd)
    finally:
        os.close(fd)


def force_to_disk(fd: int) -> None:
    """Make what was written survive a power cut. On macOS fsync stops at the drive's cache (not run on macOS)."""
    full_fsync: int | None = getattr(fcntl, "F_FULLFSYNC", None)
    if full_fsync is not None:
        with contextlib.suppress(OSError):  # not every file system knows it; fsync then tells what is wrong
            fcntl.fcntl(fd, full_fsync)
            return
    os.fsync(fd)
