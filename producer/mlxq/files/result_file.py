"""Requests read from files, and result files written so that a crash or a full disk loses no finished line.

A result file is append-only JSON lines. It is itself the durable state of a run: `load_done` tells what a rerun
may skip, a line that a crash cut off is removed when the file is opened again, and a lock keeps two runs off one
file. What a line means is `mlxq.requests.openai`'s business; nothing here knows of queues or models.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import itertools
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

import msgspec

from mlxq.contract import Failure
from mlxq.errors import ConfigError, InputFileError, RequestError
from mlxq.requests import openai
from mlxq.requests.openai import ParsedLine
from mlxq.results import read_back, result_lines

STDIN = "-"
InputFormat = Literal["jsonl", "text"]

_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_READ_LIMIT = openai.MAX_LINE_BYTES + len(_BOM) + len(b"\r\n")
"""Enough of a line to tell that it is too long."""
_BLOCK_BYTES = 64 * 1024

_Parse = Callable[[bytes, str], ParsedLine]


@dataclass(frozen=True, slots=True)
class BadLine:
    """One refused input line. `line_number` counts from 1; `custom_id` is the line's own, or one made up from its
    number if it has none that can be read. `owns_id` says that no other line can have it: it is neither made up nor a
    second use."""

    line_number: int
    custom_id: str
    error: RequestError
    owns_id: bool = True

    def failure(self) -> Failure:
        """The answer to this line."""
        return result_lines.rejection(self.error, custom_id=self.custom_id, request_id=f"line-{self.line_number}")


# --- Requests in ----------------------------------------------------------------------------------------------


def read_requests(
    path: Path | str,
    *,
    input_format: InputFormat | None = None,
    chat_text: bool = False,
    allow_unknown: bool = False,
    defaults: Mapping[str, Any] | None = None,
) -> Iterator[ParsedLine | BadLine]:
    """Read a file of requests, one line at a time; of the lines before, only the ids are kept.

    Blank lines are skipped, but counted. A request without an id is called ``line-{number}``, with a ``+`` if an
    earlier line has that id.

    Args:
        path: the file, or ``-`` for standard input.
        input_format: JSON lines, or text with one prompt per line; by default ``.txt`` is text.
        chat_text: make each line of text a user message rather than a completion prompt.
        allow_unknown: drop unknown fields instead of refusing them.
        defaults: body fields for every request that doesn't set them.

    Raises:
        InputFileError: the file can't be read, or is UTF-16; raised when a line is asked for.
            It starts with an answer; raised at once.
        ConfigError: a default can't be used; raised at once.
    """
    openai.check_defaults(defaults or {})
    _refuse_answers(path)
    text = _is_text(path, input_format)
    return _requests(path, _text_parser(chat_text, defaults) if text else _json_parser(allow_unknown, defaults))


def _requests(path: Path | str, parse: _Parse) -> Iterator[ParsedLine | BadLine]:
    first_lines: dict[str, int] = {}
    for number, line in _numbered_lines(path):
        if line.strip():
            yield _refuse_second(_parsed(parse, line, number, first_lines), number, first_lines)


def _refuse_answers(path: Path | str) -> None:
    """One error for the whole file, rather than one per line."""
    if str(path) == STDIN or not Path(path).is_file():
        return
    with _errors_of(path, "read"), Path(path).open("rb") as source:
        if _output_line(source.readline(_READ_LIMIT)) is not None:
            raise InputFileError(f"{path} is a file of answers, not of requests; are -i and -o swapped?")


def _is_text(path: Path | str, input_format: InputFormat | None) -> bool:
    return Path(path).suffix.lower() == ".txt" if input_format is None else input_format == "text"


def _json_parser(allow_unknown: bool, defaults: Mapping[str, Any] | None) -> _Parse:
    return lambda line, custom_id: openai.parse_line(
        line, default_custom_id=custom_id, allow_unknown=allow_unknown, defaults=defaults
    )


def _text_parser(chat: bool, defaults: Mapping[str, Any] | None) -> _Parse:
    return lambda line, custom_id: openai.text_request(
        _decoded_text(line), custom_id=custom_id, chat=chat, defaults=defaults
    )


def _decoded_text(line: bytes) -> str:
    if len(line) > openai.MAX_LINE_BYTES:
        raise openai.line_too_long()
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"the line is not UTF-8: {error}", code="invalid_encoding") from error


def _parsed(parse: _Parse, line: bytes, number: int, taken: Collection[str]) -> ParsedLine | BadLine:
    made_up = _made_up_id(number, taken)
    try:
        return parse(line, made_up)
    except RequestError as error:
        own = openai.read_custom_id(line)
        return BadLine(number, own or made_up, error, owns_id=own is not None)


def _made_up_id(number: int, taken: Collection[str]) -> str:
    """The same in every run over a file that only grows: a rerun has to know the line again."""
    custom_id = f"line-{number}"
    while custom_id in taken:
        custom_id += "+"
    return custom_id


def _refuse_second(parsed: ParsedLine | BadLine, number: int, first_lines: dict[str, int]) -> ParsedLine | BadLine:
    """The line itself, or a `BadLine` if an earlier line has its id: answers are told apart by id alone.

    A made-up id of a line that gets no answer takes that id from nobody.
    """
    if isinstance(parsed, BadLine) and not parsed.owns_id:
        return parsed
    custom_id = parsed.custom_id if isinstance(parsed, BadLine) else parsed.request.custom_id
    first = first_lines.setdefault(custom_id, number)
    if first == number:
        return parsed
    message = f"line {number} has the custom_id of line {first}: every id must be used once"
    if custom_id.rstrip("+") == f"line-{first}":
        message += f", and a line without one, as line {first} may be, is called by its number"
    error = RequestError(message, param="custom_id", code="duplicate_custom_id")
    return BadLine(number, custom_id, error, owns_id=False)


def _numbered_lines(path: Path | str) -> Iterator[tuple[int, bytes]]:
    with _errors_of(path, "read"), _opened(path) as stream:
        for number, line in enumerate(_bounded_lines(stream), start=1):
            if number == 1 and line.startswith(_UTF16_BOMS):
                raise InputFileError(f"{path} is UTF-16 text, as Windows tools write it: save it as UTF-8")
            yield number, (line.removeprefix(_BOM) if number == 1 else line).rstrip(b"\r\n")


def _opened(path: Path | str) -> contextlib.AbstractContextManager[BinaryIO]:
    if str(path) == STDIN:
        return _standard_input()
    return Path(path).open("rb")


def _standard_input() -> contextlib.AbstractContextManager[BinaryIO]:
    """Not the interpreter's own reader: a thread that still waits in that one when the process ends would crash it."""
    try:
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except io.UnsupportedOperation:  # a stand-in that is no file
        return contextlib.nullcontext(sys.stdin.buffer)


def _bounded_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines, cut off at the read limit: one endless line must not fill the memory."""
    while line := stream.readline(_READ_LIMIT):
        yield line
        while len(line) == _READ_LIMIT and not line.endswith(b"\n"):
            line = stream.readline(_READ_LIMIT)


# --- Results out ----------------------------------------------------------------------------------------------


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
        self._fd = _open_locked(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            with _errors_of(self._path, "write"):
                check_result_file(self._path)
                self._end = _repaired_end(self._fd) if _is_regular(self._fd) else 0
        except BaseException:
            os.close(self._fd)
            raise

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one output line. It survives this process once this returns, and a power cut after `sync`."""
        data = msgspec.json.encode(line) + b"\n"
        with _errors_of(self._path, "write"):
            try:
                _write_all(self._fd, data)
            except OSError:
                self._drop_partial_line()
                raise
        self._end += len(data)

    def sync(self) -> None:
        """Force everything written so far to the disk."""
        if _is_regular(self._fd):
            with _errors_of(self._path, "write"):
                _sync_directory(self._path)
                _force_to_disk(self._fd)

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
    with writer, _errors_of(path, "empty"):
        os.truncate(path, 0)
    return ResultWriter(path)


@dataclass(frozen=True, slots=True)
class Done:
    """An answer in a result file: the hash of the request it answers, and the name of the model it is by."""

    content_hash: str
    model: str | None


def load_done(path: Path | str) -> dict[str, Done]:
    """The answers in a result file by custom id. Later lines win; a missing file is empty.

    Raises:
        InputFileError: the file can't be read, or a line other than a cut-off last one is not an output line.
    """
    done: dict[str, Done] = {}
    with _errors_of(path, "read"), contextlib.suppress(FileNotFoundError), Path(path).open("rb") as source:
        for _, _, line in _result_lines(source, path):
            if (answer := done_by(line)) is not None:
                done[line["custom_id"]] = answer
    return done


def result_ids(path: Path | str) -> set[str]:
    """The custom ids of all lines of a result file.

    Raises:
        InputFileError: as `load_done`; a missing file is an error, too.
    """
    with _errors_of(path, "read"), Path(path).open("rb") as source:
        return {line["custom_id"] for _, _, line in _result_lines(source, path)}


def done_by(line: Mapping[str, Any]) -> Done | None:
    """What an output line has done, for a rerun; `None` if it is no answer by mlxq."""
    content_hash = read_back.content_hash_of(line)
    if content_hash is None or not read_back.is_success(line):
        return None
    return Done(content_hash, read_back.model_of(line))


def check_result_file(path: Path | str) -> None:
    """Look at the first and the last line of a file that is to take output lines: its name may be a slip of the hand.

    A missing file is fine, and so are pipes and devices. Changes nothing.

    Raises:
        InputFileError: the file can't be read, or it holds something else.
    """
    if not Path(path).is_file():
        return
    with _errors_of(path, "read"), Path(path).open("rb") as source:
        first = source.readline()
        if first.endswith(b"\n") and _output_line(first) is None:
            raise _not_an_output_line(1, path)
        tail = _tail(source.fileno())
        if tail and _output_line(tail) is None and not _can_be_torn(tail):
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
    with os.fdopen(_open_locked(target, os.O_RDONLY), "rb") as source, _errors_of(path, "reorder"):
        spans = {
            line["custom_id"]: (offset, len(raw))
            for offset, raw, line in _result_lines(source, path)
            if line["custom_id"] not in without
        }
        ordered = dict.fromkeys(custom_id for custom_id in ids if custom_id in spans) | dict.fromkeys(spans)
        _replace(target, (_line_at(source, *spans[custom_id]) for custom_id in ordered))


def drop_lines(path: Path | str, ids: Collection[str], *, before: int) -> None:
    """Rewrite a result file without those lines for `ids` that start before an offset (bytes), in one atomic step;
    call it after closing the writer.

    Raises:
        InputFileError: as `order_file`; the file is then as it was.
    """
    target = Path(path).resolve()
    with os.fdopen(_open_locked(target, os.O_RDONLY), "rb") as source, _errors_of(path, "rewrite"):
        lines = _result_lines(source, path)
        _replace(target, (raw for offset, raw, line in lines if offset >= before or line["custom_id"] not in ids))


def count_lines(path: Path | str) -> int | None:
    """How many lines a regular file has, blank ones too; `None` for standard input, pipes and devices.

    Raises:
        InputFileError: the file can't be read.
    """
    if str(path) == STDIN:
        return None
    with _errors_of(path, "read"):
        if not stat.S_ISREG(Path(path).stat().st_mode):  # `is_file` would say of a missing file that it is none
            return None
        with Path(path).open("rb") as source:
            blocks = iter(partial(source.read, _BLOCK_BYTES), b"")
            newlines, last = 0, b"\n"
            for last in blocks:
                newlines += last.count(b"\n")
        return newlines + (not last.endswith(b"\n"))


def refuse_same_file(paths: Mapping[str, Path | str]) -> None:
    """Check that no two of a command's files are one file.

    Args:
        paths: what the user calls each of them (``--output``) -> its path; ``-`` is never the same.

    Raises:
        ConfigError: names the two.
    """
    for (name, path), (other_name, other) in itertools.combinations(paths.items(), 2):
        if _is_same_file(Path(path), Path(other)):
            raise ConfigError(f"{name} and {other_name} are the same file: {path}")


def _is_same_file(path: Path, other: Path) -> bool:
    if STDIN in (str(path), str(other)):
        return False
    if path.exists() and other.exists():
        return path.is_file() and path.samefile(other)
    return path.resolve() == other.resolve()


def _result_lines(source: BinaryIO, path: Path | str) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    """Offset, bytes and value of every output line, without a last one that a crash cut off."""
    offset = 0
    for number, raw in enumerate(source, start=1):
        line = _output_line(raw)
        if line is not None:
            yield offset, raw, line
        elif raw.endswith(b"\n"):
            raise _not_an_output_line(number, path)
        offset += len(raw)


def _output_line(raw: bytes) -> dict[str, Any] | None:
    """The output line that these bytes are; `None` if they are something else or only a part of one."""
    try:
        line: dict[str, Any] = msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        return None
    return line if read_back.is_output_line(line) else None


def _not_an_output_line(number: int, path: Path | str) -> InputFileError:
    return InputFileError(f"line {number} of {path} is not an output line")


def _line_at(source: BinaryIO, offset: int, length: int) -> bytes:
    source.seek(offset)
    return source.read(length).rstrip(b"\n") + b"\n"


# --- The file itself ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _errors_of(path: Path | str, action: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputFileError(f"can't {action} {path}: {error.strerror or error}") from error


def _open_locked(path: Path, flags: int) -> int:
    """A descriptor whose lock ends with the process. Regular files only are locked."""
    with _errors_of(path, "open"):
        fd = os.open(path, flags, 0o666)
        try:
            if _is_regular(fd):
                _lock(fd, path)
        except BaseException:
            os.close(fd)
            raise
    return fd


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputFileError(f"{path} is in use by another run") from error
    # `order_file` of another run may have put a new file in its place between opening and locking.
    if os.fstat(fd).st_ino != path.stat().st_ino:
        raise InputFileError(f"{path} was replaced by another run just now; try again")


def _is_regular(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)


def _repaired_end(fd: int) -> int:
    """The size of the file, after its last line was completed with a newline or, if cut off, removed."""
    size, tail = os.fstat(fd).st_size, _tail(fd)
    if not tail:
        return size
    if _output_line(tail) is not None:
        _write_all(fd, b"\n")
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
        start = max(0, end - _BLOCK_BYTES)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _write_all(fd: int, data: bytes) -> None:
    written = 0
    while written < len(data):
        written += os.write(fd, data[written:])


def _replace(target: Path, lines: Iterable[bytes]) -> None:
    """Replace a file's content in one atomic step, keeping its permissions."""
    with contextlib.ExitStack() as cleanup:
        # Made next to the target: a rename is atomic within one file system only.
        fd, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        cleanup.callback(Path(name).unlink, missing_ok=True)
        with os.fdopen(fd, "wb") as out:
            out.writelines(lines)
            out.flush()
            _force_to_disk(out.fileno())
        shutil.copymode(target, name)
        Path(name).replace(target)
        _sync_directory(target)


def _sync_directory(path: Path) -> None:
    """Make a file's name as durable as its content."""
    fd = os.open(path.parent, os.O_RDONLY)
    try:
        _force_to_disk(fd)
    finally:
        os.close(fd)


def _force_to_disk(fd: int) -> None:
    """Make what was written survive a power cut. On macOS fsync stops at the drive's cache (not run on macOS)."""
    full_fsync: int | None = getattr(fcntl, "F_FULLFSYNC", None)
    if full_fsync is not None:
        with contextlib.suppress(OSError):  # not every file system knows it; fsync then tells what is wrong
            fcntl.fcntl(fd, full_fsync)
            return
    os.fsync(fd)
