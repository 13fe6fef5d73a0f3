"""Answers as rows of a table: which fields there are, their types, and how each is read off an output line.

A request has one row for each of its choices, and one if it failed. Knows nothing of files, and builds no lines.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mlxq.errors import ConfigError
from mlxq.results import read_back

CellType = Literal["string", "int64", "double"]
"""Arrow's names."""


@dataclass(frozen=True, slots=True)
class FlatField:
    """A column. `read` takes an output line and one of its choices, which is empty for a failure."""

    type: CellType
    read: Callable[[Mapping[str, Any], Mapping[str, Any]], Any]


def _of_stop(name: str) -> Callable[[Mapping[str, Any], Mapping[str, Any]], Any]:
    return lambda _line, choice: (choice.get("stop_details") or {}).get(name)


def _of_choice(name: str) -> Callable[[Mapping[str, Any], Mapping[str, Any]], Any]:
    return lambda _line, choice: choice.get(name)


def _usage(index: int) -> Callable[[Mapping[str, Any], Mapping[str, Any]], Any]:
    return lambda line, choice: read_back.usage_of(line)[index] if choice else None


def _stop_reason(_line: Mapping[str, Any], choice: Mapping[str, Any]) -> str | None:
    reason = choice.get("stop_reason")
    return None if reason is None else str(reason)


def _tool_calls(_line: Mapping[str, Any], choice: Mapping[str, Any]) -> str | None:
    calls = read_back.calls_of(choice)
    return json.dumps(calls, ensure_ascii=False) if calls else None


def _reasoning(_line: Mapping[str, Any], choice: Mapping[str, Any]) -> Any:
    message = choice.get("message")
    return message.get("reasoning_content") if isinstance(message, dict) else None


def _error(line: Mapping[str, Any], choice: Mapping[str, Any]) -> str | None:
    """Of a failure, or of one choice among several that died."""
    error = choice.get("error")
    if isinstance(error, dict):
        return f"{error.get('code')}: {error.get('message')}"
    code, message = read_back.error_code_of(line), read_back.error_message_of(line)
    return f"{code}: {message}" if code else None


FIELDS: Mapping[str, FlatField] = {
    "custom_id": FlatField("string", lambda line, _choice: read_back.custom_id_of(line)),
    "index": FlatField("int64", _of_choice("index")),
    "text": FlatField("string", lambda _line, choice: read_back.text_of(choice)),
    "reasoning_content": FlatField("string", _reasoning),
    "tool_calls": FlatField("string", _tool_calls),
    "finish_reason": FlatField("string", _of_choice("finish_reason")),
    "stop_reason": FlatField("string", _stop_reason),
    "stop_type": FlatField("string", _of_stop("type")),
    "stop_token": FlatField("string", _of_stop("token")),
    "stop_string": FlatField("string", _of_stop("string")),
    "prompt_tokens": FlatField("int64", _usage(0)),
    "completion_tokens": FlatField("int64", _usage(1)),
    "seed": FlatField("int64", lambda line, choice: read_back.seed_of(line, choice)),
    "model": FlatField("string", lambda line, _choice: read_back.model_of(line)),
    "error": FlatField("string", _error),
}
DEFAULT = (
    *("custom_id", "text", "finish_reason", "stop_type", "stop_token"),
    *("prompt_tokens", "completion_tokens", "seed", "error"),
)


@dataclass(frozen=True, slots=True)
class FlatShape:
    """The columns of a table of answers: names of ours by what they are called there, and those of the input."""

    fields: Mapping[str, str]
    kept: tuple[str, ...] = ()

    @classmethod
    def read(cls, fields: str | None, kept: tuple[str, ...] = ()) -> FlatShape:
        """What the user wrote: ``custom_id,answer=text``, or nothing for all that most tables need.

        Raises:
            ConfigError: a field is unknown, or a column is there twice.
        """
        named = [field.strip().rpartition("=") for field in fields.split(",")] if fields else []
        pairs = [(given or name, name) for given, _, name in named] or [(name, name) for name in DEFAULT]
        for _, name in pairs:
            if name not in FIELDS:
                raise ConfigError(f"there is no field {name!r}; there are {', '.join(FIELDS)}")
        columns = [column for column, _ in pairs] + list(kept)
        for column in columns:
            if columns.count(column) > 1:
                raise ConfigError(
                    f"the table would have two columns {column!r}: to call a field otherwise, write"
                    f" --fields ...,answer={column if column in FIELDS else 'text'}"
                )
        return cls(dict(pairs), kept)

    @property
    def types(self) -> dict[str, CellType]:
        """Those of our own columns."""
        return {column: FIELDS[name].type for column, name in self.fields.items()}

    def rows(self, line: Mapping[str, Any], kept: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The rows of one output line."""
        for choice in read_back.choices_of(line) or ({},):
            ours = {column: FIELDS[name].read(line, choice) for column, name in self.fields.items()}
            yield {**ours, **{name: kept.get(name) for name in self.kept}}
