"""Result files, written so that a crash or a full disk loses no finished line.

A result file is append-only JSON lines. It is itself the durable state of a run: `load_done` tells what a rerun
may skip, a line that a crash cut off is removed when the file is opened again, and a lock keeps two runs off one
file. Knows no requests, queues or models.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import msgspec

from mlxq.errors import InputFileError
from mlxq.files.output.durable import force_to_disk, is_regular, open_locked, replace_file, sync_directory, write_all
from mlxq.files.paths import BLOCK_BYTES, file_errors
from mlxq.results import read_back


class ResultWriter:
    """Appends output lines to a file that it alone writes to, one system call each; for one thread.

    Opening creates the file, or repairs it if a crash cut its last line off. The lock goes with the process, so
    a killed run leaves nothing to clean up. What isn't a regular file (a pipe, ``/dev/null``) is neither locked
    nor repaired.

    Raises:
        InputFileError: the file can't be opened or written, another run has it, or it holds something else.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._fd = open_locked(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            with file_errors(self._path, "write"):
                check_result_file(self._path)
                self._end = _repaired_end(self._fd) if is_regular(self._fd) else 0
        except BaseException:
            os.close(self._fd)
            raise

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one output line. It survives this process once this returns, and a power cut after `sync`."""
        data = msgspec.json.encode(line) + b"\n"
        with file_errors(self._path, "write"):
            try:
                write_all(self._fd, data)
            except OSError:
                self._drop_partial_line()
                raise
        self._end += len(data)

    def sync(self) -> None:
        """Force everything written so far to the disk."""
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

    def _drop_partial_line(self) -> None:
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


@dataclass(frozen=True, slots=True)
class Done:
    """An answer in a result file: the hash of the request it answers, and the name of the model it is by.

    One that `is_cut` is there in part, so its request is not done. `default_max_tokens` is the worker's limit that the
    answer kept to, where its request has none and the line says so.
    """

    content_hash: str
    model: str | None
    is_cut: bool = False
    default_max_tokens: int | None = None


def load_done(path: Path | str) -> dict[str, Done]:
    """The answers in a result file by custom id. Later lines win; a missing file is empty.

    Raises:
        InputFileError: the file can't be read, or a line other than a cut-off last one is not an output line.
    """
    done: dict[str, Done] = {}
    with file_errors(path, "read"), contextlib.suppress(FileNotFoundError), Path(path).open("rb") as source:
        for _, _, line in _result_lines(source, path):
            if (answer := done_by(line)) is not None:
                done[line["custom_id"]] = answer
    return done


def read_lines(path: Path | str) -> Iterator[dict[str, Any]]:
    """All lines of a result file, one by one.

    Raises:
        InputFileError: as `load_done`; a missing file is an error, too.
    """
    with file_errors(path, "read"), Path(path).open("rb") as source:
        for _, _, line in _result_lines(source, path):
            yield line


def done_by(line: Mapping[str, Any]) -> Done | None:
    """What an output line has done, for a rerun; `None` if it is no answer by mlxq, nor a part of one."""
    content_hash = read_back.content_hash_of(line)
    if content_hash is None or not read_back.is_success(line):
        return None
    return Done(
        content_hash,
        read_back.model_of(line),
        is_cut=read_back.is_cut(line),
        default_max_tokens=read_back.default_max_tokens_of(line),
    )


def check_result_file(path: Path | str) -> None:
    """Look at the first and the last line of a file that is to take output lines: its name may be a slip of the hand.

    A missing file is fine, and so are pipes and devices. Changes nothing.

    Raises:
        InputFileError: the file can't be read, or it holds something else.
    """
    if not Path(path).is_file():
        return
    with file_errors(path, "read"), Path(path).open("rb") as source:
        first = source.readline()
        if first.endswith(b"\n") and read_back.decode_output_line(first) is None:
            raise _not_an_output_line(1, path)
        tail = _tail(source.fileno())
        if tail and read_back.decode_output_line(tail) is None and not _can_be_torn(tail):
            raise InputFileError(f"{path} is not a file of output lines, so nothing is added to it")


def order_file(path: Path | str, ids: Iterable[str], *, without: Collection[str] = ()) -> None:
    """Rewrite a result file in the order of `ids`, in one atomic step; call it after closing the writer.

    Of several lines for one id the last is kept. Lines with other ids follow in their old order; those with ids in
    `without` are dropped.

    Raises:
        InputFileError: as `load_done` and `ResultWriter`; the file is then as it was.
    """
    # The target of a link is what gets replaced, not the link.
    target = Path(path).resolve()
    with os.fdopen(open_locked(target, os.O_RDONLY), "rb") as source, file_errors(path, "reorder"):
        spans = {
            line["custom_id"]: (offset, len(raw))
            for offset, raw, line in _result_lines(source, path)
            if line["custom_id"] not in without
        }
        ordered = dict.fromkeys(custom_id for custom_id in ids if custom_id in spans) | dict.fromkeys(spans)
        replace_file(target, (_line_at(source, *spans[custom_id]) for custom_id in ordered))


def drop_lines(path: Path | str, ids: Collection[str], *, before: int) -> None:
    """Rewrite a result file without those lines for `ids` that start before an offset (bytes), in one atomic step;
    call it after closing the writer.

    Raises:
        InputFileError: as `order_file`; the file is then as it was.
    """
    target = Path(path).resolve()
    with os.fdopen(open_locked(target, os.O_RDONLY), "rb") as source, file_errors(path, "rewrite"):
        lines = _result_lines(source, path)
        replace_file(target, (raw for offset, raw, line in lines if offset >= before or line["custom_id"] not in ids))


def _result_lines(source: BinaryIO, path: Path | str) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    """Offset, bytes and value of every output line, without a last one that a crash cut off."""
    offset = 0
    for number, raw in enumerate(source, start=1):
        line = read_back.decode_output_line(raw)
        if line is not None:
            yield offset, raw, line
        elif raw.endswith(b"\n"):
            raise _not_an_output_line(number, path)
        offset += len(raw)


def _not_an_output_line(number: int, path: Path | str) -> InputFileError:
    return InputFileError(f"line {number} of {path} is not an output line")


def _line_at(source: BinaryIO, offset: int, length: int) -> bytes:
    source.seek(offset)
    return source.read(length).rstrip(b"\n") + b"\n"


def _repaired_end(fd: int) -> int:
    """The size of the file, after its last line was completed with a newline or, if cut off, removed."""
    size, tail = os.fstat(fd).st_size, _tail(fd)
    if not tail:
        return size
    if read_back.decode_output_line(tail) is not None:
        write_all(fd, b"\n")
        return size + 1
    os.ftruncate(fd, size - len(tail))
    return size - len(tail)


def _tail(fd: int) -> bytes:
    """What stands after the last newline."""
    size = os.fstat(fd).st_size
    start = _last_line_start(fd, size)
    return os.pread(fd, size - start, start)


def _can_be_torn(line: bytes) -> bool:
    """Whether this can be the start of an output line, and no more than that: whole JSON was not cut off."""
    try:
        msgspec.json.decode(line)
    except (ValueError, RecursionError):
        return line.startswith(b"{")
    return False


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
