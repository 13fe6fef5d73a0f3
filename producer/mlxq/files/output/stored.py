"""How output lines lie in a file, as JSON lines or packed in blocks of them, and how they are read from it.

Changes nothing. What a line says is `mlxq.results.read_back`'s business.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import msgspec

from mlxq.errors import InputFileError
from mlxq.files.paths import BLOCK_BYTES, file_errors
from mlxq.formats.names import named
from mlxq.formats.packing import Packing, packing_of, unpacked
from mlxq.results import read_back

T = TypeVar("T")


class Stored(NamedTuple):
    """One output line: where it begins in what the file holds unpacked, its bytes, and what it says."""

    offset: int
    raw: bytes
    line: dict[str, Any]


def packing_in(path: Path) -> Packing | None:
    """How a file of output lines is packed: as its content is, or as its name says where it has none."""
    if path.is_file():
        with path.open("rb") as source:
            head = source.read(4)
        if head:
            return packing_of(head)
    return named(path).packing


def read_lines(path: Path | str) -> Iterator[dict[str, Any]]:
    """All lines of a result file, one by one.

    Raises:
        InputFileError: the file can't be read, or a line other than a cut-off last one is not an output line.
    """
    return read_as(path, read_back.decode_output_line)


def read_as(path: Path | str, decode: Callable[[bytes], T | None]) -> Iterator[T]:
    """What `decode` makes of each line, which is `None` for what is no output line. Raises as `read_lines`."""
    with file_errors(path, "read"), opened(Path(path)) as source:
        for _, _, line in _decoded(source, path, decode):
            yield line


@contextlib.contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """What the file holds, unpacked, to be read from its beginning to its end."""
    source: io.BufferedReader = io.BufferedReader(io.FileIO(path), BLOCK_BYTES)
    with source:
        packing = packing_of(source.peek(4))
        yield source if packing is None else unpacked(source, packing, BLOCK_BYTES)


@contextlib.contextmanager
def seekable(path: Path) -> Iterator[BinaryIO]:
    """What the file holds, unpacked, to be read anywhere: the file itself, or a copy that is gone afterwards."""
    with opened(path) as source:
        if isinstance(source.raw, io.FileIO):
            yield source
            return
        with tempfile.TemporaryFile(dir=path.parent) as copy:
            shutil.copyfileobj(source, copy)
            copy.seek(0)
            yield copy


def stored_lines(source: BinaryIO, path: Path | str) -> Iterator[Stored]:
    """Every output line, without a last one that a crash cut off.

    Raises:
        InputFileError: a line is something else.
    """
    return (Stored(*each) for each in _decoded(source, path, read_back.decode_output_line))


def _decoded(source: BinaryIO, path: Path | str, decode: Callable[[bytes], T | None]) -> Iterator[tuple[int, bytes, T]]:
    offset = 0
    for number, raw in enumerate(source, start=1):
        line = decode(raw)
        if line is not None:
            yield offset, raw, line
        elif raw.endswith(b"\n"):
            raise not_an_output_line(number, path)
        offset += len(raw)


def line_at(source: BinaryIO, offset: int) -> bytes:
    """The whole line that begins there, with a newline."""
    source.seek(offset)
    return source.readline().rstrip(b"\n") + b"\n"


def not_an_output_line(number: int, path: Path | str) -> InputFileError:
    """The error for a line that is something else."""
    return InputFileError(f"line {number} of {path} is not an output line")


def can_be_torn(line: bytes) -> bool:
    """Whether this can be the start of an output line, and no more than that: whole JSON was not cut off."""
    try:
        msgspec.json.decode(line)
    except (ValueError, RecursionError):
        return line.startswith(b"{")
    return False
