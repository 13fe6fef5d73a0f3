"""Which columns of a table are what in a request, and the requests that rows are.

Where columns are named, they alone count and all others are the user's own; otherwise a table's columns are the fields
of a request under their names, as on a line. Knows nothing of files, and leaves it to `mlxq.requests` what a field may
be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlxq.errors import InputFileError, RequestError
from mlxq.formats.records import Row
from mlxq.formats.text import as_json
from mlxq.requests.envelope import LINE_FIELDS
from mlxq.requests.fields import FIELDS
from mlxq.tables.template import PromptTemplate

IDS = ("custom_id", "id")
_TEXT = frozenset({"prompt", *IDS})
"""What a cell of text is, as it stands; other fields have JSON in such a cell, where it is that."""
_INDEX_OF_PANDAS = "__index_level_"
_BOOLEANS = {"True": "true", "TRUE": "true", "False": "false", "FALSE": "false"}
"""As pandas and spreadsheets write them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What the user has said of the columns. `prompt`, `messages` and `id` are names; `template` makes the prompt of
    the whole row; `keep` names those that go along into the output."""

    prompt: str | None = None
    messages: str | None = None
    id: str | None = None
    template: PromptTemplate | None = None
    keep: tuple[str, ...] = ()

    @property
    def are_named(self) -> bool:
        """Whether rows are data, of which only what is named counts."""
        return bool(self.prompt or self.messages or self.template)

    @property
    def name_any(self) -> bool:
        """Whether there have to be columns at all."""
        return self.are_named or self.id is not None or bool(self.keep)

    def check(self, columns: Sequence[str], *, allow_unknown: bool) -> None:
        """Look at the columns of a whole table before any of its rows.

        Raises:
            InputFileError: one that is named isn't there, or one that is there is neither named nor a field.
        """
        has = f"it has {', '.join(filter(None, columns))}"
        named = {"--prompt-column": self.prompt, "--messages-column": self.messages, "--id-column": self.id}
        for option, name in [*named.items(), *(("--keep", name) for name in self.keep)]:
            if name is not None and name not in columns:
                raise InputFileError(f"{option} names the column {name}, which the table doesn't have; {has}")
        if self.template and (missing := self.template.missing(columns)):
            raise InputFileError(f"{missing}, which the table doesn't have; {has}")
        if not self.are_named:
            self._check_fields(columns, has, allow_unknown)

    def _check_fields(self, columns: Sequence[str], has: str, allow_unknown: bool) -> None:
        if not {"prompt", "messages", "body"} & set(columns):
            raise InputFileError(
                f"the table has no column that is called prompt or messages; {has}: name one with --prompt-column or"
                " --messages-column, or make the prompt with --template"
            )
        unknown = [name for name in columns if not (_is_field(name) or name in self.keep or name == self.id)]
        if unknown and not allow_unknown:
            prompt = "--prompt-column prompt" if "prompt" in columns else "--messages-column messages"
            raise InputFileError(
                f"the column {unknown[0]} is no field of a request: to leave such columns alone, add {prompt}; to have"
                f" it in the output, --keep {unknown[0]}"
            )

    def line_of(self, row: Row) -> dict[str, Any]:
        """The request in a row, as an input line has it.

        Raises:
            RequestError: a column is missing, or holds what no request can have.
        """
        if not self.are_named:
            line = {name: _field(name, value) for name, value in row.items() if self._is_of_request(name)}
        elif self.messages is not None:
            line = {"messages": _json_of(_cell(row, self.messages), self.messages)}
        else:
            line = {"prompt": self._prompt(row)}
        if self.id is not None or self.are_named:
            line["custom_id"] = self.custom_id(row)
        return line

    def custom_id(self, row: Row) -> Any:
        """What a row is called; `None` if it has no id."""
        names = [self.id] if self.id is not None else [name for name in IDS if name in row]
        ids = [_plain(_cell(row, name), name) for name in names]
        return next((value for value in ids if value not in (None, "")), None)

    def kept(self, row: Row) -> dict[str, Any]:
        """The columns that go along."""
        return {name: row.get(name) for name in self.keep}

    def without_kept(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """A line of JSON without what is the user's own."""
        return {name: value for name, value in line.items() if _is_field(name) or name not in self.keep}

    def _is_of_request(self, name: str) -> bool:
        """Whether it is a field, or is to be refused as an unknown one."""
        if not name or name.startswith(_INDEX_OF_PANDAS) or name == self.id or (self.id and name in IDS):
            return False
        return _is_field(name) or name not in self.keep

    def _prompt(self, row: Row) -> str:
        if self.template is not None:
            return self.template.render(row)
        value = _plain(_cell(row, self.prompt or ""), self.prompt)
        if value is None:
            raise RequestError(f"{self.prompt} has no value in this row", param=self.prompt, code="missing_field")
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _is_field(name: str) -> bool:
    return not name or name in FIELDS or name in LINE_FIELDS or name.startswith(_INDEX_OF_PANDAS)


def _cell(row: Row, column: str) -> Any:
    if column not in row:
        raise RequestError(f"this row has no {column}", param=column, code="missing_column")
    return row[column]


def _plain(value: Any, param: str | None) -> Any:
    try:
        return as_json(value)
    except ValueError as error:
        raise RequestError(f"{param} is not UTF-8 text", param=param, code="invalid_encoding") from error


def _field(name: str, value: Any) -> Any:
    """A field's value in a cell. Text is what it says, where the field can have that, and otherwise JSON."""
    value = _plain(value, name)
    if not isinstance(value, str) or name in _TEXT:
        return value
    if value == "":
        return None  # CSV's way to say that there is none
    if name == "messages":
        return _json_of(value, name)
    if not value.lstrip().startswith(("[", "{")) and _can_be_text(name, value):
        return value
    try:
        return json.loads(_BOOLEANS.get(value, value))
    except (ValueError, RecursionError):
        return value


def _can_be_text(name: str, value: str) -> bool:
    if name not in FIELDS:
        return True
    try:
        FIELDS[name].read(value, name)
    except RequestError:
        return False
    return True


def _json_of(value: Any, column: str) -> Any:
    """A conversation: a list of its own, or text with one in JSON."""
    value = _plain(value, column)
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{column} is not JSON: {error}", param=column, code="invalid_json") from error
