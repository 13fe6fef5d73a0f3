"""CSV and TSV, as spreadsheets, databases and data frames write them: RFC 4180 with any of the usual delimiters.

Every cell is text; CSV has no way to say that a cell has no value, so an empty one is the empty text. Knows nothing of
what columns mean.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, BinaryIO

from mlxq.errors import RequestError
from mlxq.formats.lines import BOM
from mlxq.formats.records import Record
from mlxq.formats.text import cell_text

DELIMITERS = (",", ";", "\t", "|")
MAX_LINE_BYTES = 64 * 1024 * 1024
_SEP = re.compile(r"sep=(.)\r?\n?\Z")  # Excel's own first line, which names the delimiter


class DelimitedReader:
    """A table of text that is open. It begins with the names of its columns.

    Args:
        stream: UTF-8, with or without a mark.
        delimiter: by default the one of `DELIMITERS` that the first line has most of.

    Raises:
        OSError: there is no line of names, or a name is there twice.
    """

    def __init__(self, stream: io.BufferedReader, delimiter: str | None = None) -> None:
        csv.field_size_limit(MAX_LINE_BYTES)  # the module's own default refuses a prompt of 128 KiB
        lines = _decoded(stream)
        first = next(lines, "")
        self._skipped = 0
        if given := _SEP.match(first):
            delimiter, first, self._skipped = given[1], next(lines, ""), 1
        self._reader = csv.reader(
            chain([first] if first else [], lines), delimiter=delimiter or _most_frequent(first), strict=True
        )
        self.columns = self._names()

    def rows(self) -> Iterator[Record]:
        """All rows but blank lines. One that has not as many cells as there are columns is an error of its own."""
        while True:
            number = self._reader.line_num + self._skipped + 1
            try:
                cells = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise OSError(f"line {number} is not CSV: {_said(error)}") from error
            if cells:
                yield Record(number, self._row(cells))

    def _row(self, cells: Sequence[str]) -> Mapping[str, str] | RequestError:
        if len(cells) != len(self.columns):
            message = f"the row has {len(cells)} cells, where the table has {len(self.columns)} columns"
            return RequestError(message, code="ragged_row")
        try:
            "".join(cells).encode()
        except UnicodeEncodeError:
            return RequestError("the row is not UTF-8", code="invalid_encoding")
        return dict(zip(self.columns, cells, strict=True))

    def _names(self) -> tuple[str, ...]:
        try:
            names = tuple(next(self._reader, ()))
        except csv.Error as error:
            raise OSError(f"its first line is not CSV: {_said(error)}") from error
        if not any(names):
            raise OSError("it has no first line with the names of the columns")
        refuse_twice(names)
        return names


def _decoded(stream: io.BufferedReader) -> Iterator[str]:
    """Lines as text. A byte that is no UTF-8 costs its own row only: it becomes a surrogate, which is found there."""
    for number, line in enumerate(iter(partial(stream.readline, MAX_LINE_BYTES), b""), start=1):
        if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            raise OSError(f"line {number} has more than {MAX_LINE_BYTES // 2**20} MiB")
        yield (line.removeprefix(BOM) if number == 1 else line).decode(errors="surrogateescape")


def refuse_twice(names: Sequence[str]) -> None:
    """Check that no column has the name of another.

    Raises:
        OSError: names the first one that does.
    """
    for name in names:
        if name and names.count(name) > 1:
            raise OSError(f"it has two columns that are called {name!r}")


def write_rows(
    out: BinaryIO, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, delimiter: str = ","
) -> None:
    """Write a table: its names, then its rows. `None` becomes an empty cell, lists and objects become JSON."""
    text = io.TextIOWrapper(out, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([cell_text(row.get(name)) for name in columns] for row in rows)
    text.detach()


def _said(error: csv.Error) -> str:
    """What the module says, but for its advice to programmers."""
    if "new-line character" in str(error):
        return "a carriage return that no line feed follows (old Macs ended lines so) has to be in quotes"
    return str(error)


def _most_frequent(line: str) -> str:
    return max(DELIMITERS, key=line.count)  # the first of equals, which is the comma
