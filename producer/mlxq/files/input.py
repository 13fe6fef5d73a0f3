"""Requests read from files and pipes, one at a time, each with an id that a rerun knows again.

A record that can't be accepted becomes a `BadLine` and costs only itself. How a format is read is `mlxq.formats`'
business, what a record means that of `mlxq.tables.requests`; nothing here knows of answers, queues or models.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from mlxq.contract import Failure
from mlxq.errors import InputFileError, RequestError
from mlxq.files.paths import STDIN, count_lines, file_errors
from mlxq.formats.arrow import ArrowReader
from mlxq.formats.delimited import DelimitedReader
from mlxq.formats.kinds import HEAD_BYTES, arrow_format_of, kind_of
from mlxq.formats.lines import read_lines
from mlxq.formats.names import ARROW_FORMATS, TABLES, Format, named
from mlxq.formats.packing import packing_of, unpacked
from mlxq.formats.records import Record, Row, TableReader
from mlxq.id_table import IdTable
from mlxq.requests import openai
from mlxq.requests.openai import ParsedLine
from mlxq.results import read_back, result_lines
from mlxq.tables.columns import Columns
from mlxq.tables.requests import RequestMaker

ID_DIGITS = 16

_Parse = Callable[[bytes | Row, str], ParsedLine]
Paths = Path | str | Sequence[Path | str]


@dataclass(frozen=True, slots=True)
class BadLine:
    """One refused input line. `line_number` counts from 1 in its file, which is named in `source` where there are
    several. `custom_id` is the line's own, or one made up from its number if it has none that can be read; `owns_id`
    says that no other line can have it: it is neither made up nor a second use. `kept` is as in `ParsedLine`."""

    line_number: int
    custom_id: str
    error: RequestError
    owns_id: bool = True
    source: str | None = None
    kept: Mapping[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """``line 7``, or ``line 7 of more.jsonl``."""
        return _place(self.line_number, self.source)

    def failure(self) -> Failure:
        """The answer to this line."""
        return result_lines.rejection(self.error, custom_id=self.custom_id, request_id=f"line-{self.line_number}")


def read_requests(
    paths: Paths,
    *,
    input_format: Format | None = None,
    chat_text: bool = False,
    system: str | None = None,
    columns: Columns | None = None,
    allow_unknown: bool = False,
    defaults: Mapping[str, Any] | None = None,
    max_line_bytes: int = openai.MAX_LINE_BYTES,
) -> Iterator[ParsedLine | BadLine]:
    """Read files of requests, one line or row at a time; of those before, only the ids are kept, on the disk.

    Blank lines are skipped, but counted. A request without an id is called ``row-`` and a hash of its content, with
    ``-2`` and so on for others that ask for the same. Packed files are unpacked, whatever they are called.

    Args:
        paths: a file, several, or ``-`` for standard input.
        input_format: what they are; by default what their names say, or else what they begin with, or JSON lines.
        chat_text: make plain text a user message rather than a completion prompt.
        system: a system message for every conversation that begins with none; makes plain text a user message, too.
        columns: what the columns of tables, or the fields of lines that are data, are.
        allow_unknown: drop unknown fields instead of refusing them.
        defaults: body fields for every request that doesn't set them.
        max_line_bytes: a longer line is refused, and no more of it is kept in memory than tells that it is longer;
            at most `openai.MAX_LINE_BYTES`.

    Raises:
        InputFileError: a file can't be read; raised when a line is asked for. It is something else as a whole, such as
            answers or an archive, or lacks a column; raised at once, or of a pipe when a line is asked for.
        ConfigError: a default can't be used, or a file needs a package that isn't there; raised at once.
    """
    openai.check_defaults(defaults or {})
    maker = RequestMaker(
        columns=columns or Columns(),
        chat=chat_text,
        system=system,
        allow_unknown=allow_unknown,
        defaults=defaults or {},
        max_bytes=max_line_bytes,
    )
    listed = list_paths(paths)
    sources = [_Source(path, input_format, maker, is_one_of_several=len(listed) > 1) for path in listed]
    for source in sources:
        source.look()
    return _requests(sources)


def list_paths(paths: Paths) -> list[Path | str]:
    """The one path, or all of them."""
    return [paths] if isinstance(paths, (str, Path)) else list(paths)


def count_requests(paths: Paths, input_format: Format | None = None) -> int | None:
    """How many lines or rows there are, blank ones too; `None` where only reading all of it would tell.

    Raises:
        InputFileError: a file can't be read.
    """
    counts = [_Source(path, input_format, RequestMaker()).count() for path in list_paths(paths)]
    return None if None in counts else sum(count for count in counts if count is not None)


def arrow_fields(paths: Paths, input_format: Format | None, columns: Sequence[str]) -> dict[str, Any]:
    """pyarrow's descriptions of these columns, where all files are its own and agree.

    Raises:
        InputFileError: a file can't be read.
    """
    found: list[dict[str, Any]] = []
    for path in list_paths(paths) if columns else ():
        table = _Source(path, input_format, RequestMaker()).arrow_table()
        if table is None:
            return {}
        found.append({name: table.schema.field(name) for name in columns if name in table.columns})
    return found[0] if found and all(other == found[0] for other in found) else {}


def _requests(sources: Sequence[_Source]) -> Iterator[ParsedLine | BadLine]:
    taken = IdTable()
    for source in sources:
        for record in source.records():
            parsed = _parsed(record, source, taken)
            kept = {} if isinstance(record.value, RequestError) else source.maker.kept_of(record.value)
            yield replace(parsed, kept=kept) if kept else parsed


def _parsed(record: Record, source: _Source, taken: IdTable) -> ParsedLine | BadLine:
    place = _place(record.number, source.name)
    try:
        if isinstance(record.value, RequestError):
            raise record.value
        parsed = source.parse(record.value, "")
    except RequestError as error:
        own = None if isinstance(record.value, RequestError) else source.maker.id_in(record.value)
        custom_id = own or _free_id(record.number, taken)
        bad = BadLine(record.number, custom_id, error, owns_id=own is not None, source=source.name)
        return bad if own is None else _refuse_second(bad, own, record.number, place, taken, source.name)
    if not parsed.request.custom_id:
        return parsed.called(_made_up_id(parsed.request.content_hash, place, taken))
    return _refuse_second(parsed, parsed.request.custom_id, record.number, place, taken, source.name)


def _free_id(number: int, taken: IdTable) -> str:
    """What a line is called that gets no answer and has no id: it takes that from nobody."""
    custom_id = f"line-{number}"
    while custom_id in taken:
        custom_id += "+"
    return custom_id


def _made_up_id(content_hash: str, place: str, taken: IdTable) -> str:
    """The same in every run, wherever in the file the request stands: a rerun has to know it again."""
    base = f"row-{content_hash[:ID_DIGITS]}"
    custom_id, count = base, 1
    while not taken.add(custom_id, place):
        count = (taken.get(f"\0{base}") or 1) + 1  # no id of a line has this: where to go on counting
        taken.put(f"\0{base}", count)
        custom_id = f"{base}-{count}"
    return custom_id


def _refuse_second(
    parsed: ParsedLine | BadLine, custom_id: str, number: int, place: str, taken: IdTable, source: str | None = None
) -> ParsedLine | BadLine:
    """The line itself, or a `BadLine` if an earlier line has its id: answers are told apart by id alone."""
    if taken.add(custom_id, place):
        return parsed
    message = f"{place} has the custom_id of {taken.get(custom_id)}: every id must be used once"
    error = RequestError(message, param="custom_id", code="duplicate_custom_id")
    return BadLine(number, custom_id, error, owns_id=False, source=source)


def _place(number: int, source: str | None) -> str:
    return f"line {number} of {source}" if source else f"line {number}"


class _Source:
    """One file or pipe, and how its records become requests. `name` is there where several files have a line 7."""

    def __init__(
        self, path: Path | str, input_format: Format | None, maker: RequestMaker, *, is_one_of_several: bool = False
    ) -> None:
        self.name = Path(path).name if is_one_of_several else None
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

    def look(self) -> None:
        """One error for the whole file, rather than one per line, and before anything is started for it."""
        if not self._is_file():
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

    def count(self) -> int | None:
        """How many records there are, at most; `None` where that is not known without reading them."""
        if not self._is_file():
            return count_lines(self._path)
        with file_errors(self._path, "read"):
            if (table := self.arrow_table()) is not None:
                return table.num_rows()
            return None if packing_of(self._head()) or self._format in TABLES else count_lines(self._path)

    def arrow_table(self) -> ArrowReader | None:
        """The file as a table of pyarrow's; `None` if it is something else."""
        if not self._is_file():
            return None
        with file_errors(self._path, "read"):
            self._format = self._given or arrow_format_of(self._head()) or self._format
            return ArrowReader(self._path, self._format) if self._format in ARROW_FORMATS else None

    def _head(self) -> bytes:
        with io.FileIO(self._path) as raw:
            return raw.read(HEAD_BYTES)

    def _is_file(self) -> bool:
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
        if self._format not in TABLES and (kind := kind_of(head, is_text=self._format == "text")) is not None:
            raise InputFileError(kind.of(self._path))

    def _table(self, stream: io.BufferedReader) -> TableReader:
        table: TableReader
        if self._format in ARROW_FORMATS:
            if not self._is_file():
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
