"""Makes requests of what any reader yields: JSON lines, plain text, rows of a table.

A record is one request or one `RequestError`. Knows neither files nor which of two records came first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mlxq.errors import RequestError
from mlxq.formats.records import Row
from mlxq.requests import openai
from mlxq.requests.openai import ParsedLine
from mlxq.tables.columns import Columns


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMaker:
    """How records become requests: the same for all of an input.

    `chat` makes plain text a chat message rather than a bare prompt, `system` goes before every conversation that
    begins with no such message of its own, `defaults` are body fields for requests that don't set them, and
    `allow_unknown` drops unknown fields instead of refusing them. Of JSON lines that are data, `columns` name what
    counts. `max_bytes` is the longest line.
    """

    columns: Columns = field(default_factory=Columns)
    chat: bool = False
    system: str | None = None
    allow_unknown: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    max_bytes: int = openai.MAX_LINE_BYTES

    def settings(self) -> tuple[object, ...]:
        """All that decides what a record means, each with a `repr` that says what it is."""
        columns = self.columns
        template = columns.template and columns.template.source
        named = (columns.prompt, columns.messages, columns.id, template, columns.keep)
        return (named, self.chat, self.system, self.allow_unknown, dict(self.defaults), self.max_bytes)

    def of_json(self, line: bytes, custom_id: str) -> ParsedLine:
        """The request on a line of JSON.

        Raises:
            RequestError: the line can't be accepted.
        """
        self._check_length(line)
        if self.columns.are_named or self.columns.id is not None:
            return replace(self.of_row(openai.decoded_object(line), custom_id), num_bytes=len(line))
        if self.columns.keep:
            parsed = self._of_object(self.columns.without_kept(openai.decoded_object(line)), custom_id)
            return replace(parsed, num_bytes=len(line))
        return openai.parse_line(
            line,
            default_custom_id=custom_id,
            allow_unknown=self.allow_unknown,
            defaults=self.defaults,
            system=self.system,
        )

    def of_text(self, line: bytes, custom_id: str) -> ParsedLine:
        """The request that a line of text is the prompt of. Raises `RequestError`."""
        self._check_length(line)
        try:
            return replace(self.of_prompt(line.decode(), custom_id), num_bytes=len(line))
        except UnicodeDecodeError as error:
            raise RequestError(f"the line is not UTF-8: {error}", code="invalid_encoding") from error

    def of_row(self, row: Row, custom_id: str) -> ParsedLine:
        """The request in a row. Raises `RequestError`."""
        line = self.columns.line_of(row)
        if self.columns.are_named and "prompt" in line and (self.chat or self.system is not None):
            prompt = line.pop("prompt")
            line["messages"] = [{"role": "user", "content": prompt}]
        parsed = self._of_object(line, custom_id)
        return replace(parsed, num_bytes=openai.text_length(parsed.payload["body"]))

    def kept_of(self, value: bytes | Row) -> dict[str, Any]:
        """The columns of a record that go along; nothing of one that can't be read."""
        if not self.columns.keep:
            return {}
        try:
            return self.columns.kept(openai.decoded_object(value) if isinstance(value, bytes) else value)
        except RequestError:
            return {}

    def id_in(self, value: bytes | Row) -> str | None:
        """The usable id of a record, if it can be read at all."""
        has_columns = self.columns.are_named or self.columns.id is not None
        if isinstance(value, bytes) and not has_columns and (custom_id := openai.plain_custom_id(value)) is not None:
            return custom_id
        try:
            row = openai.decoded_object(value) if isinstance(value, bytes) else value
            return openai.custom_id_in({"custom_id": self.columns.custom_id(row)} if has_columns else row)
        except RequestError:
            return None

    def of_prompt(self, text: str, custom_id: str) -> ParsedLine:
        """The request for a prompt. Raises `RequestError`."""
        if self.chat or self.system is not None:
            return self._of_object({"messages": [{"role": "user", "content": text}]}, custom_id)
        return openai.text_request(text, custom_id=custom_id, defaults=self.defaults)

    def _of_object(self, line: Mapping[str, Any], custom_id: str) -> ParsedLine:
        return openai.parse_object(
            line,
            default_custom_id=custom_id,
            allow_unknown=self.allow_unknown,
            defaults=self.defaults,
            system=self.system,
        )

    def _check_length(self, line: bytes) -> None:
        if len(line) > self.max_bytes:
            raise openai.line_too_long(self.max_bytes)
