"""What the names of a command's outputs mean: which files it writes, and whether a table is made of the answers.

Writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mlxq.files.output.answer_table import AnswerTable, answers_path, is_table
from mlxq.files.output.sink import default_error_file
from mlxq.files.paths import refuse_same_file
from mlxq.tables.flat import DEFAULT, FlatShape

fields = click.option(
    "--fields",
    metavar="NAME,...",
    help=f"Write a table with these columns, also answer=text to call one otherwise.  [default: {','.join(DEFAULT)}]",
)


@dataclass(frozen=True, slots=True)
class Writing:
    """The files of a command: that of answers, that of failures, and the table that is made of both, if any."""

    answers: Path
    errors: Path
    table: AnswerTable | None

    @classmethod
    def of(
        cls,
        output: Path,
        errors: Path | None,
        fields: str | None,
        *,
        kept: tuple[str, ...] = (),
        kept_types: Mapping[str, Any] | None = None,
        inputs: Iterable[Path] = (),
    ) -> Writing:
        """What the options say. Changes no file.

        Raises:
            ConfigError: two files are one, a field is unknown, or the table can't be written.
        """
        errors = errors or default_error_file(output)
        table = None
        if is_table(output) or fields or kept:
            table = AnswerTable(output, FlatShape.read(fields, kept), kept_types or {})
        answers = output if table is None else answers_path(output)
        files = {"--output": output, "--error-file": errors}
        if table is not None:
            files["the answers"] = answers
        refuse_same_file(files)
        for path in inputs:
            refuse_same_file({"--input": path, **files})
        if table is not None:
            table.check()
        return cls(answers, errors, table)
