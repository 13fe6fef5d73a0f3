"""One file or pipe of requests: what it is, and the records that are in it.

How a format is read is `mlxq.formats`' business; nothing here knows which of two records came first.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

from mlxq.errors import InputFileError
from mlxq.files.known_lines import Marker, marker
from mlxq.files.paths import STDIN, count_lines, file_errors
from mlxq.formats.arrow import ArrowReader
from mlxq.formats.delimited import DelimitedReader
from mlxq.formats.kinds import HEAD_BYTES, arrow_format_of, kind_instead_of_table, kind_of
from mlxq.formats.lines import read_lines
from mlxq.formats.names import ARROW_FORMATS, TABLES, Format, named
from mlxq.formats.packing import packing_of, unpacked
from mlxq.formats.records import Record, Row, TableReader
from mlxq.requests import openai
from mlxq.requests.openai import ParsedLine
from mlxq.results import read_back
from mlxq.tables.requests import RequestMaker

_Parse = Callable[[bytes | Row, str], ParsedLine]


class Source:
    """One file or pipe, and how its records become requests. `name` is there where several files have a line 7."""

    def __init__(
        self, path: Path | str, input_format: Format | None, maker: RequestMaker, name: str | None = None
    ) -> None:
        self.name = name
        self.maker = maker
        self._path = path
        self._given = input_format
        self._format: Format = input_format or named(path).format or "jsonl"

    @property
    def parse(self) -> _Parse:
        """How this source's records are read."""
        maker = self.maker
        if self._format in TABLES:
            return cast(_Parse, maker.of_row)
        return cast(_Parse, maker.of_text if self._format == "text" else maker.of_json)

    def id_in(self, value: bytes | Row) -> str | None:
        """The usable id of a record, if it can be read at all; it isn't read any further."""
        return None if self._format == "text" else self.maker.id_in(value)

    def look(self) -> None:
        """One error for the whole file, rather than one per line, and before anything is started for it."""
        if not self.is_file:
            return
        with file_errors(self._path, "read"), self._open() as stream:
            self._decide(stream.peek(HEAD_BYTES))
            if self._format == "text" and self.maker.columns.name_any:
                raise InputFileError(f"{self._path} is plain text, and has no columns")
            if self._format in TABLES:
                self._table(stream)
            elif read_back.decode_output_line(stream.readline(openai.MAX_LINE_BYTES)) is not None:
                raise InputFileError(f"{self._path} is a file of answers, not of requests; are -i and -o swapped?")

    def records(self) -> Iterator[Record]:
        """All of them but blank lines, in their order."""
        with file_errors(self._path, "read"), self._open() as stream:
            self._decide(stream.peek(HEAD_BYTES))  # what has come of a pipe; it isn't waited for more
            if self._format in TABLES:
                yield from self._table(stream).rows()
                return
            for record in read_lines(stream, self.maker.max_bytes):
                if isinstance(record.value, bytes) and record.value.strip():
                    yield record

    def marker(self, filled_in: object = None) -> Marker:
        """Marks of its records: whatever decides what they mean goes into them, and what is filled in besides."""
        return marker([self._format, *self.maker.settings(), filled_in])

    def count(self) -> int | None:
        """How many records there are, at most; `None` where that is not known without reading them."""
        if not self.is_file:
            return count_lines(self._path)
        with file_errors(self._path, "read"):
            if (table := self.arrow_table()) is not None:
                return table.num_rows()
            return None if packing_of(self._head()) or self._format in TABLES else count_lines(self._path)

    def arrow_table(self) -> ArrowReader | None:
        """The file as a table of pyarrow's; `None` if it is something else."""
        if not self.is_file:
            return None
        with file_errors(self._path, "read"):
            self._format = self._given or arrow_format_of(self._head()) or self._format
            return ArrowReader(self._path, self._format) if self._format in ARROW_FORMATS else None

    def _head(self) -> bytes:
        with io.FileIO(self._path) as raw:
            return raw.read(HEAD_BYTES)

    @property
    def is_file(self) -> bool:
        """Whether it is there as a whole."""
        return str(self._path) != STDIN and Path(self._path).is_file()

    @contextlib.contextmanager
    def _open(self) -> Iterator[io.BufferedReader]:
        with _opened(self._path) as packed_stream:
            packing = packing_of(packed_stream.peek(4))
            yield packed_stream if packing is None else unpacked(packed_stream, packing, HEAD_BYTES)

    def _decide(self, head: bytes) -> None:
        """Settle the format, if neither the user nor the name has, and refuse what is none."""
        if self._format != "text":
            self._format = self._given or arrow_format_of(head) or self._format
        if self._format in ARROW_FORMATS:
            return
        is_table = self._format in TABLES
        kind = kind_instead_of_table(head) if is_table else kind_of(head, is_text=self._format == "text")
        if kind is not None:
            raise InputFileError(kind.of(self._path))

    def _table(self, stream: io.BufferedReader) -> TableReader:
        table: TableReader
        if self._format in ARROW_FORMATS:
            if not self.is_file:
                raise InputFileError(f"{_shown(self._path)} is a pipe: Parquet and Arrow are read from files")
            table = ArrowReader(self._path, self._format)
        else:
            table = DelimitedReader(stream, "\t" if self._format == "tsv" else None)
        try:
            self.maker.columns.check(table.columns, allow_unknown=self.maker.allow_unknown)
        except InputFileError as error:
            raise InputFileError(f"{_shown(self._path)}: {error}") from error
        return table


def _shown(path: Path | str) -> str:
    return "standard input" if str(path) == STDIN else str(path)


def _opened(path: Path | str) -> contextlib.AbstractContextManager[io.BufferedReader]:
    if str(path) == STDIN:
        return _standard_input()
    return io.BufferedReader(io.FileIO(path), HEAD_BYTES)


def _standard_input() -> contextlib.AbstractContextManager[io.BufferedReader]:
    """Not the interpreter's own reader: a thread that still waits in that one when the process ends would crash it."""
    if sys.stdin is None:  # so Python has it where the shell closed it
        raise InputFileError("standard input is closed: give a file, or pipe the requests in")
    try:
        return io.BufferedReader(io.FileIO(sys.stdin.fileno(), closefd=False), HEAD_BYTES)
    except io.UnsupportedOperation:  # a stand-in that is no file
        return contextlib.nullcontext(io.BufferedReader(cast(io.RawIOBase, sys.stdin.buffer), HEAD_BYTES))
