"""A table of answers, made at the end of a run from the file of answers: a row for each request of the input, or for
each of its choices, in the order of the input, with its error if it failed.

The file of answers stays beside it: it is what a rerun goes on from, and has all that a table has no column for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec

from mlxq.errors import ConfigError
from mlxq.files.input import BadLine
from mlxq.files.output.durable import replace_file
from mlxq.files.output.stored import line_at, seekable, stored_lines
from mlxq.files.paths import file_errors
from mlxq.formats.names import TABLES, Named, named
from mlxq.formats.table_writer import check_name, write_table
from mlxq.requests.openai import ParsedLine
from mlxq.results.result_lines import failure_line
from mlxq.storage.id_table import IdTable
from mlxq.storage.spool import Spool
from mlxq.tables.flat import FlatShape


class InputRow(NamedTuple):
    """What the table needs of one request: its id, the columns that go along, and the failure of one that was refused
    without being asked."""

    custom_id: str
    kept: Mapping[str, Any]
    failure: Mapping[str, Any] | None = None


def input_row(line: ParsedLine | BadLine) -> InputRow:
    """What the table needs of a line of the input."""
    if isinstance(line, BadLine):
        return InputRow(line.custom_id, line.kept, failure_line(line.failure()))
    return InputRow(line.request.custom_id, line.kept)


def is_table(path: Path) -> bool:
    """Whether a file of this name is a table, rather than a file of answers."""
    return named(path).format in TABLES


def answers_path(table: Path) -> Path:
    """``out.csv.gz`` -> ``out.answers.jsonl``."""
    plain = table.with_suffix("") if named(table).packing else table
    return plain.with_name(f"{plain.stem}.answers.jsonl")


@dataclass(frozen=True, slots=True)
class AnswerTable:
    """A table that is to be written. `kept_types` are pyarrow's of the input's columns, where the input has some."""

    path: Path
    shape: FlatShape
    kept_types: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Look whether it can be written, before anything is run for it. A file that is there is replaced only if the
        answers that it was made from are beside it.

        Raises:
            ConfigError: it can't.
        """
        check_name(self._name)
        if self.path.exists() and not answers_path(self.path).exists():
            raise ConfigError(
                f"{self.path} is there already, and {answers_path(self.path).name} is not, from which mlxq makes it:"
                " give another --output"
            )

    def write(self, rows: Spool[InputRow], answers: Path, errors: Path) -> None:
        """Write it in one atomic step.

        Raises:
            InputFileError: it can't be written; what was there before is as it was.
        """
        with ExitStack() as stack:
            stack.enter_context(file_errors(self.path, "write"))
            lines = _Lines([stack.enter_context(seekable(path)) for path in (errors, answers) if path.is_file()])

            def flat() -> Iterator[dict[str, Any]]:
                for row in rows:
                    line = row.failure or lines.get(row.custom_id)
                    if line is not None:
                        yield from self.shape.rows(line, row.kept)

            def write(out: BinaryIO) -> None:
                write_table(out, self._name, self.shape.types, self.shape.kept, flat, self.kept_types)

            replace_file(self.path.resolve(), write)

    @property
    def _name(self) -> Named:
        return named(self.path)


class _Lines:
    """The output lines of several files by id; of several for one id the last."""

    def __init__(self, sources: list[BinaryIO]) -> None:
        self._sources = sources
        self._places = IdTable()  # id -> number of the file, and offset in it
        for number, source in enumerate(sources):
            for offset, _, line in stored_lines(source, ""):
                self._places.put(line["custom_id"], offset * len(sources) + number)

    def get(self, custom_id: str) -> dict[str, Any] | None:
        place = self._places.get(custom_id)
        if place is None:
            return None
        offset, number = divmod(place, len(self._sources))
        line: dict[str, Any] = msgspec.json.decode(line_at(self._sources[number], offset))
        return line
