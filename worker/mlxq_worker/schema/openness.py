"""Finds where a schema's free keys meet declared ones, and what has to be tried out so that no answer runs into a wall.

The compiler keeps a free key from being a declared one, also where that leaves none: then a comma could be written, and
no key behind it. Works on schemas in normal form.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlxq_worker.schema.keywords import LISTS, MAPS, SINGLES, Effort, Schema, SchemaError, is_schema, types_of

_ABOUT_TEXT = ("pattern", "minLength", "maxLength")
_IN_PLACE = ("allOf", "anyOf", "oneOf")
_CONTROL = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")
_CONTROL_IN_PATTERN = re.compile(r"[\x00-\x1f\x7f]|\\(?:x|u|c|v|a|e|0|p|P)|\[:")


@dataclass(frozen=True, slots=True)
class Probe:
    """A schema in normal form that must leave something to write behind `text`; `message` says what it means if not."""

    schema: dict[str, Any]
    text: str
    message: str


class Openness:
    """What is seen in the schemas of one document."""

    def __init__(self, definitions: Mapping[str, Schema], effort: Effort) -> None:
        self._definitions = definitions
        self._effort = effort
        self._probes: dict[str, Probe] = {}
        self._patterned: list[dict[str, Any]] = []
        self._controls: set[str] = set()
        self.plain_keys = False

    @property
    def probes(self) -> tuple[Probe, ...]:
        """What has to be possible.

        Raises:
            SchemaError: a control character has to be written as an escape, which keys here must not have.
        """
        if not self.plain_keys:
            return tuple(self._probes.values())
        if self._controls:
            raise SchemaError("", f"the control character in {min(self._controls)!r} can't be written beside free keys")
        strings = (Probe(each, "", f"pattern {each['pattern']} allows nothing") for each in self._patterned)
        return (*self._probes.values(), *strings)

    def look_at(self, schema: Schema) -> None:
        """Look at a schema and all in it."""
        if not isinstance(schema, dict):
            return
        self._look_at_keys(schema)
        self._look_at_texts(schema)
        for child in _inside(schema):
            self.look_at(child)

    def _look_at_keys(self, schema: dict[str, Any]) -> None:
        parts = list(self._parts(schema, set()))
        names = dict.fromkeys(name for part in parts for name in _declared(part))
        if not names:
            return
        self.plain_keys |= any(part.get("additionalProperties", True) is not False for part in parts)
        for pattern in dict.fromkeys(pattern for part in parts for pattern in part.get("patternProperties", ())):
            only_others = {
                "type": "object",
                "properties": dict.fromkeys(names, False),
                "patternProperties": {pattern: {"type": "null"}},
                "additionalProperties": False,
                "minProperties": 1,
            }
            message = f"patternProperties {pattern} is for no key but those that properties or required name"
            self._probes.setdefault(f"{pattern} {sorted(names)}", Probe(only_others, "{", message))

    def _look_at_texts(self, schema: dict[str, Any]) -> None:
        values = [schema["const"]] if "const" in schema else schema.get("enum", ())
        self._controls.update(text for value in values for text in _texts(value) if _CONTROL.search(text))
        pattern = schema.get("pattern")
        if isinstance(pattern, str) and _CONTROL_IN_PATTERN.search(pattern):
            about_text = {name: schema[name] for name in _ABOUT_TEXT if name in schema}
            self._patterned.append({"type": "string", **about_text})

    def _parts(self, schema: Schema, seen: set[str]) -> Iterator[dict[str, Any]]:
        """The schemas that the same object may have to fit."""
        self._effort.spend()
        if not isinstance(schema, dict) or "object" not in (types_of(schema) or ("object",)):
            return
        yield schema
        for keyword in _IN_PLACE:
            for part in schema.get(keyword, ()):
                yield from self._parts(part, seen)
        name = schema.get("$ref", "").rpartition("/")[2]
        if name and name not in seen:
            seen.add(name)
            yield from self._parts(self._definitions.get(name, True), seen)


def _declared(schema: dict[str, Any]) -> Iterator[str]:
    yield from schema.get("properties", ())
    required = schema.get("required", ())
    yield from (name for name in required if isinstance(name, str)) if isinstance(required, list) else ()


def _inside(schema: dict[str, Any]) -> Iterator[Schema]:
    for keyword, value in schema.items():
        if keyword in MAPS:
            yield from value.values()
        elif keyword in LISTS and isinstance(value, list):
            yield from value
        elif keyword in SINGLES and is_schema(value):
            yield value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
