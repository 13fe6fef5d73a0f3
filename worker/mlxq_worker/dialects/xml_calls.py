"""Reads calls whose arguments stand between tags, each as bare text: Qwen3-Coder, GLM, MiniMax, DeepSeek V3.2 and kin.

A value may spell out any of the tags, so a closing tag closes only where the call goes on, or ends, as the syntax says,
and each further parameter is one that the tool has. Values are typed by the tool's schema (`arguments.typed`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mlxq_worker.dialects.arguments import Schema, fits, knows_property, property_schema, typed
from mlxq_worker.dialects.calls import BLANKS, Call, CallSyntax, Found, Offered, skip

_MOST_TRIES = 400
"""Closing tags that are tried for one call, in all its values together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class XmlSyntax:
    """Calls between tags. All but `value_end` are regular expressions.

    Args:
        begin: opens a section of calls; may be missing in a model's answer if `call` can stand alone.
        end: closes it; may be left out.
        call: opens a call; its group ``name`` is the function.
        call_end: closes it.
        parameter: opens a value; its group ``key`` is the parameter, ``string`` maybe whether it is a text.
        value_end: what closes a value, exactly.
        is_wrapped: values stand on lines of their own; the breaks around them are no part of them.
        may_lack_value_end: models leave `value_end` out before a further parameter or the call's end.
        marker, openers: as in `CallSyntax`.
    """

    begin: str = ""
    end: str = ""
    call: str
    call_end: str
    parameter: str
    value_end: str
    is_wrapped: bool = False
    may_lack_value_end: bool = False
    marker: str
    openers: tuple[str, ...] = ()

    def syntax(self) -> CallSyntax:
        opener = f"(?:{self.begin})|(?:{self.call})" if self.begin else self.call
        return CallSyntax(
            opener=re.compile(opener), read=_XmlReader(self).read, marker=self.marker, openers=self.openers
        )


@dataclass(slots=True)
class _Tries:
    left: int = _MOST_TRIES

    def spend(self) -> bool:
        self.left -= 1
        return self.left >= 0


@dataclass(frozen=True, slots=True)
class _Value:
    key: str
    text: str
    is_text: bool | None


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One way of reading: a strict one takes known parameters only, each once, and no closing tags left over."""

    schema: Schema
    is_strict: bool
    tries: _Tries = field(default_factory=_Tries)

    def takes(self, key: str, values: list[_Value]) -> bool:
        if not self.is_strict:
            return True
        return knows_property(self.schema, key) and all(value.key != key for value in values)

    def takes_value(self, value: _Value) -> bool:
        """Whether a value is of a type that the schema states, so that it may end where it does."""
        return not self.is_strict or fits(_typed(value, self.schema), property_schema(self.schema, value.key))


class _XmlReader:
    def __init__(self, xml: XmlSyntax) -> None:
        self._xml = xml
        self._begin = re.compile(xml.begin) if xml.begin else None
        self._end = re.compile(xml.end) if xml.end else None
        self._call = re.compile(xml.call)
        self._call_end = re.compile(xml.call_end)
        self._parameter = re.compile(xml.parameter)
        closers = [re.escape(xml.value_end), xml.call_end, *([xml.end] if xml.end else [])]
        self._closer = re.compile("|".join(f"(?:{closer})" for closer in closers))

    def read(self, text: str, position: int, offered: Offered) -> Found | None:
        begun = self._begin.match(text, position) if self._begin else None
        position = begun.end() if begun else position
        calls: list[Call] = []
        while (match := self._call.match(text, skip(text, position, BLANKS))) is not None:
            found = self._one_call(text, match, offered)
            if found is None:
                return None
            calls.append(found[0])
            position = found[1]
        if not calls:
            return None
        if self._end and (closed := self._end.match(text, skip(text, position, BLANKS))):
            position = closed.end()
        return Found(tuple(calls), position)

    def _one_call(self, text: str, match: re.Match[str], offered: Offered) -> tuple[Call, int] | None:
        name = offered.known_name(match["name"])
        if name is None:
            return None
        schema = offered.schemas[name]
        for is_strict in (True, False):
            attempt = _Attempt(schema, is_strict)
            read = self._parameters(text, match.end(), [], attempt)
            if read is not None:
                values, end = read
                return Call(name, {value.key: _typed(value, schema) for value in values}), end
        return None

    def _parameters(
        self, text: str, position: int, values: list[_Value], attempt: _Attempt
    ) -> tuple[list[_Value], int] | None:
        """The values from here to the call's end, and the index behind it."""
        position = skip(text, position, BLANKS)
        match = self._parameter.match(text, position)
        if match is None:
            return self._ended(text, position, values, attempt)
        key = match["key"].strip()
        if not attempt.takes(key, values):
            return None
        is_text = {"true": True, "false": False}.get(match.groupdict().get("string") or "")
        for end, after in self._value_ends(text, match.end()):
            if not attempt.tries.spend():
                return None
            value = _Value(key, self._unwrapped(text[match.end() : end]), is_text)
            if not attempt.takes_value(value):
                continue
            read = self._parameters(text, after, [*values, value], attempt)
            if read is not None:
                return read
        return None

    def _ended(
        self, text: str, position: int, values: list[_Value], attempt: _Attempt
    ) -> tuple[list[_Value], int] | None:
        match = self._call_end.match(text, position)
        if match is None:
            # The section may end here without the call's own end; where the answer does, more was to come.
            is_over = self._end is not None and self._end.match(text, position) is not None
            return (values, position) if is_over else None
        if attempt.is_strict and self._leaves_closers(text, match.end()):
            return None
        return values, match.end()

    def _leaves_closers(self, text: str, position: int) -> bool:
        """Whether tags that close nothing follow, or not the one that has to: then the value that was read last goes
        on."""
        position = skip(text, position, BLANKS)
        if self._end is not None:
            closed = self._end.match(text, position)
            if closed is None:
                return position < len(text) and self._call.match(text, position) is None
            position = skip(text, closed.end(), BLANKS)
        return self._closer.match(text, position) is not None

    def _value_ends(self, text: str, position: int) -> Iterator[tuple[int, int]]:
        """Where a value may end, and where the call then goes on."""
        start, size = position, len(self._xml.value_end)
        while (found := text.find(self._xml.value_end, start)) >= 0:
            yield found, found + size
            start = found + 1
        if self._xml.may_lack_value_end:
            for pattern in (self._parameter, self._call_end):
                if match := pattern.search(text, position):
                    yield match.start(), match.start()

    def _unwrapped(self, value: str) -> str:
        if not self._xml.is_wrapped:
            return value
        return value.removeprefix("\n").removesuffix("\n")


def _typed(value: _Value, schema: Schema) -> Any:
    """By the schema; where that says nothing of the type, or leaves it open, the tag may."""
    found = property_schema(schema, value.key)
    if value.is_text and _may_be_text(found):
        return value.text
    if value.is_text is False and not _states_type(found):
        return typed(value.text, {"type": ["null", "boolean", "integer", "number", "object", "array"]})
    return typed(value.text, found)


def _may_be_text(schema: Schema) -> bool:
    return fits("", {key: each for key, each in schema.items() if key not in ("enum", "const")})


def _states_type(schema: Schema) -> bool:
    return bool(set(schema) & {"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "properties", "items"})
