"""Result files, written so that a crash or a full disk loses no finished line.

A result file is append-only: JSON lines, or blocks of them that are packed each for itself. It is itself the durable
state of a run: what a crash cut off is removed when the file is opened again, and a lock keeps two runs off one file.
Knows no requests, queues or models.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from mlxq.errors import InputFileError
from mlxq.files.output.durable import force_to_disk, is_regular, open_locked, sync_directory, write_all
from mlxq.files.output.stored import can_be_torn, not_an_output_line, opened, packing_in
from mlxq.files.paths import BLOCK_BYTES, file_errors
from mlxq.formats.packing import Packing, packed, whole_part
from mlxq.results import read_back

PACKED_BYTES = 1024 * 1024
"""Of lines in one block of a packed file, at most; `ResultWriter.sync` ends a block before that."""


class ResultWriter:
    """Appends output lines to a file that it alone writes to; for one thread.

    Opening creates the file, or repairs it if a crash cut off its last line or block. The lock goes with the process,
    so a killed run leaves nothing to clean up. What isn't a regular file (a pipe, ``/dev/null``) is neither locked nor
    repaired.

    Raises:
        InputFileError: the file can't be opened or written, another run has it, or it holds something else.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._waiting = bytearray()  # lines of a block that is not written yet
        self._fd = open_locked(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            with file_errors(self._path, "write"):
                check_result_file(self._path)
                self._packing = packing_in(self._path)
                self._end = _repaired_end(self._fd, self._packing) if is_regular(self._fd) else 0
        except BaseException:
            os.close(self._fd)
            raise

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one output line, in one system call. It survives this process once this returns, and a power cut after
        `sync`; of a packed file both only after `sync`."""
        data = msgspec.json.encode(line) + b"\n"
        if self._packing is None:
            self._write(data)
            return
        self._waiting += data
        if len(self._waiting) >= PACKED_BYTES:
            self._write_block(self._packing)

    def sync(self) -> None:
        """Force everything written so far to the disk."""
        if self._packing is not None:
            self._write_block(self._packing)
        if is_regular(self._fd):
            with file_errors(self._path, "write"):
                sync_directory(self._path)
                force_to_disk(self._fd)

    def close(self) -> None:
        """Sync, and let go of the file and its lock."""
        try:
            self.sync()
        finally:
            os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _write_block(self, packing: Packing) -> None:
        if self._waiting:
            self._write(packed(bytes(self._waiting), packing))
            self._waiting.clear()

    def _write(self, data: bytes) -> None:
        with file_errors(self._path, "write"):
            try:
                write_all(self._fd, data)
            except OSError:
                self._drop_partial_write()
                raise
        self._end += len(data)

    def _drop_partial_write(self) -> None:
        # A device can't be truncated, and on a failing disk this may fail too: then the next opening repairs it,
        # and the error that the caller should see is the first one.
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self._end)


def open_writer(path: Path, *, keep: bool) -> ResultWriter:
    """A writer on the file as it is, or on the emptied file. Nothing is emptied that another run is using.

    Raises:
        InputFileError: as `ResultWriter`.
    """
    writer = ResultWriter(path)
    if keep or not path.is_file():
        return writer
    with writer, file_errors(path, "empty"):
        os.truncate(path, 0)
    return ResultWriter(path)


def check_result_file(path: Path | str) -> None:
    """Look at the first and the last line of a file that is to take output lines: its name may be a slip of the hand.

    A missing file is fine, and so are pipes and devices. Changes nothing.

    Raises:
        InputFileError: the file can't be read, or it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        return
    with file_errors(path, "read"), opened(path) as source:
        is_packed = not isinstance(source.raw, io.FileIO)
        # Of a packed file that is damaged from its beginning on, nothing is known, and nothing is kept.
        with contextlib.suppress(OSError) if is_packed else contextlib.nullcontext():
            first = source.readline()
            if first.endswith(b"\n") and read_back.decode_output_line(first) is None:
                raise not_an_output_line(1, path)
        if not is_packed:
            _check_tail(_tail(source.fileno()), path)


def _check_tail(tail: bytes, path: Path) -> None:
    if tail and read_back.decode_output_line(tail) is None and not can_be_torn(tail):
        raise InputFileError(f"{path} is not a file of output lines, so nothing is added to it")


def _repaired_end(fd: int, packing: Packing | None) -> int:
    """The size of the file, after its last line was completed with a newline or, if cut off, removed; or the last
    block of a packed one."""
    if packing is not None:
        return _repaired_end_of_packed(fd, packing)
    size, tail = os.fstat(fd).st_size, _tail(fd)
    if not tail:
        return size
    if read_back.decode_output_line(tail) is not None:
        write_all(fd, b"\n")
        return size + 1
    os.ftruncate(fd, size - len(tail))
    return size - len(tail)


def _repaired_end_of_packed(fd: int, packing: Packing) -> int:
    os.lseek(fd, 0, os.SEEK_SET)
    with os.fdopen(os.dup(fd), "rb") as source:
        whole = whole_part(source, packing)
    os.ftruncate(fd, whole.end)
    if whole.last in (b"", b"\n"):
        return whole.end
    newline = packed(b"\n", packing)
    write_all(fd, newline)
    return whole.end + len(newline)


def _tail(fd: int) -> bytes:
    """What stands after the last newline."""
    size = os.fstat(fd).st_size
    start = _last_line_start(fd, size)
    return os.pread(fd, size - start, start)


def _last_line_start(fd: int, size: int) -> int:
    """The offset after the last newline."""
    end = size
    while end > 0:
        start = max(0, end - BLOCK_BYTES)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
