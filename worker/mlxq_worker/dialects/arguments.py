"""Gives the texts of XML-like arguments the types that a tool's JSON schema states, and nothing else does.

A value that fits no stated type stays the text that the model wrote: an argument is never lost. Knows no syntax of
calls.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mlxq_worker.dialects.python_values import python_literal

Schema = Mapping[str, Any]

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_MAX_DEPTH = 20
"""Of references and unions, which may go round in circles."""
_MISSING = object()


def property_schema(schema: Schema, name: str) -> Schema:
    """What an object's schema says of one property; nothing (an empty schema) if it says nothing."""
    for part in _parts(schema, schema, 0):
        found = _stated(part, name)
        if found is not None:
            return {**_definitions(schema), **found}
    return {}


def knows_property(schema: Schema, name: str) -> bool:
    """Whether the schema names this property, or takes any."""
    parts = list(_parts(schema, schema, 0))
    if any(_stated(part, name) is not None for part in parts):
        return True
    return not any(isinstance(part.get("properties"), Mapping) for part in parts)


def typed(text: str, schema: Schema) -> Any:
    """The value that a text stands for under this schema.

    A listed value (`enum`, `const`) wins, then whatever of null, boolean, whole number, number, object and array is
    among the types and written out in full; else it is the text. Without any stated type it is the text.
    """
    parts = list(_parts(schema, schema, 0))
    for value in _listed(parts):
        if value == text if isinstance(value, str) else _is_json_of(text, value):
            return value
    types = _types(parts)
    word = text.strip()
    for kind, read in _READERS.items():
        if kind in types and (value := read(word)) is not _MISSING:
            return value
    return text


def types_of(schema: Schema) -> frozenset[str]:
    """The types that are stated, those of unions and references too."""
    return _types(list(_parts(schema, schema, 0)))


def fits(value: Any, schema: Schema) -> bool:
    """Whether a typed value is of one of the stated types; any is where none is stated."""
    parts = list(_parts(schema, schema, 0))
    listed, types = list(_listed(parts)), _types(parts)
    if not listed and not types:
        return True
    return value in listed or not isinstance(value, str) or "string" in types


def _definitions(schema: Schema) -> dict[str, Any]:
    return {key: schema[key] for key in ("$defs", "definitions") if key in schema}


def _stated(part: Schema, name: str) -> Schema | None:
    properties = part.get("properties")
    if isinstance(properties, Mapping) and isinstance(properties.get(name), Mapping):
        return properties[name]  # type: ignore[no-any-return]
    patterns = part.get("patternProperties")
    for pattern, found in patterns.items() if isinstance(patterns, Mapping) else ():
        if isinstance(found, Mapping) and _matches(pattern, name):
            return found
    more = part.get("additionalProperties")
    return more if isinstance(more, Mapping) else None


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error:  # a pattern of another dialect of regular expressions says nothing here
        return False


def _parts(schema: Any, root: Schema, depth: int) -> Iterator[Schema]:
    """The schema and all that it refers to, or is a union or an intersection of."""
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return
    yield schema
    if isinstance(reference := schema.get("$ref"), str):
        yield from _parts(_referred(reference, root), root, depth + 1)
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(key), list):
            for part in schema[key]:
                yield from _parts(part, root, depth + 1)


def _referred(reference: str, root: Schema) -> Any:
    found: Any = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found


def _listed(parts: list[Schema]) -> Iterator[Any]:
    for part in parts:
        if isinstance(part.get("enum"), list):
            yield from part["enum"]
        if "const" in part:
            yield part["const"]


def _is_json_of(text: str, value: Any) -> bool:
    if text.strip() in _WORDS and (value is None or isinstance(value, bool)):
        return _WORDS[text.strip()] is value
    try:
        read = json.loads(text)
    except ValueError:
        return False
    return type(read) is type(value) and bool(read == value)


def _types(parts: list[Schema]) -> frozenset[str]:
    stated: set[str] = set()
    for part in parts:
        kind = part.get("type")
        names = kind if isinstance(kind, list) else [kind]
        stated.update(_TYPE_NAMES.get(name.lower(), name.lower()) for name in names if isinstance(name, str))
        if part.get("nullable") is True:
            stated.add("null")
        if kind is None and isinstance(part.get("properties"), Mapping):
            stated.add("object")
        if kind is None and isinstance(part.get("items"), Mapping):
            stated.add("array")
    return frozenset(stated)


_TYPE_NAMES = {
    "str": "string",
    "text": "string",
    "int": "integer",
    "float": "number",
    "double": "number",
    "bool": "boolean",
    "dict": "object",
    "list": "array",
}
"""Python's names, which tools written by hand have."""


def _null(word: str) -> Any:
    return None if word in ("null", "None") else _MISSING


def _boolean(word: str) -> Any:
    return _WORDS[word] if word in ("true", "True", "false", "False") else _MISSING


def _integer(word: str) -> Any:
    """JSON schema counts 3.0 among the whole numbers."""
    if re.fullmatch(r"[+-]?\d{1,4000}", word):
        return int(word)
    value = _number(word)
    return int(value) if isinstance(value, float) and value.is_integer() else _MISSING


def _number(word: str) -> Any:
    if not _NUMBER.fullmatch(word) or len(word) > 4000:
        return _MISSING
    if re.fullmatch(r"[+-]?\d+", word):
        return int(word)
    value = float(word)
    return value if math.isfinite(value) else _MISSING


def _literal_of(kind: type) -> Any:
    """JSON's, or Python's: models mix them up."""

    def read(word: str) -> Any:
        try:
            value = python_literal(word)
        except ValueError:
            return _MISSING
        return value if isinstance(value, kind) else _MISSING

    return read


_READERS = {
    "null": _null,
    "boolean": _boolean,
    "integer": _integer,
    "number": _number,
    "object": _literal_of(dict),
    "array": _literal_of(list),
}
"""In the order of preference of types."""
