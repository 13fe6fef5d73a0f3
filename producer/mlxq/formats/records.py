"""What a reader of any format yields: numbered lines of bytes, or numbered rows of a table.

Knows no format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mlxq.errors import RequestError

Row = Mapping[str, Any]
"""A row of a table by the names of its columns, in Python's types; a cell without a value is `None`."""


@dataclass(frozen=True, slots=True)
class Record:
    """One line, without its end, or one row. `number` counts from 1: lines of a file of text, where a row of CSV may
    take several and begins on this one, and rows of other tables. A row that can't be read is the error that says why.
    """

    number: int
    value: bytes | Row | RequestError


class TableReader(Protocol):
    """A table that is open."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all columns, each once, in their order."""
        ...

    def rows(self) -> Iterator[Record]:
        """All rows, a few at a time in memory. Raises `OSError` where the table is damaged."""
        ...
