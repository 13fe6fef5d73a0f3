"""Where in a JSON schema other schemas stand, and which of its keywords the compiler enforces.

Source: JSON Schema 2020-12 (core, sections 10 and 11; validation, section 6) and what earlier drafts called otherwise.
Knows positions and names; what they mean is for the other modules.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

Schema = bool | dict[str, Any]

MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords whose value is an object of schemas."""
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
"""Keywords whose value is (in `items`: may be) a list of schemas."""
SINGLES = (
    "items",
    "additionalItems",
    "additionalProperties",
    "propertyNames",
    "not",
    "contains",
    "if",
    "then",
    "else",
    "unevaluatedProperties",
    "unevaluatedItems",
)
"""Keywords whose value is a schema."""
COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
"""Keywords whose value is a count: 1.0 is one, too."""
FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"},
)
"""The formats that llguidance enforces. Any other is an annotation, as JSON Schema has it."""


class SchemaError(ValueError):
    """A schema that can't be enforced; the message names the place in it and the keyword."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path or 'the schema'}: {reason}")


class Effort:
    """What may be spent on one schema, in steps of some microseconds: a small one can be made to take hours."""

    def __init__(self, num_steps: int = 100_000) -> None:
        self._num_left = num_steps

    def spend(self, num_steps: int = 1) -> None:
        """
        Raises:
            SchemaError: there is nothing left to spend.
        """
        self._num_left -= num_steps
        if self._num_left < 0:
            raise SchemaError("", "it takes too long to look at; make it smaller, with fewer and simpler parts")


def children(schema: Schema) -> Iterator[Schema]:
    """The schemas that stand directly in a schema."""
    if not isinstance(schema, dict):
        return
    for keyword in MAPS:
        if isinstance(inner := schema.get(keyword), dict):
            yield from (each for each in inner.values() if is_schema(each))
    for keyword in LISTS:
        if isinstance(inner := schema.get(keyword), list):
            yield from (each for each in inner if is_schema(each))
    for keyword in SINGLES:
        if is_schema(inner := schema.get(keyword)):
            yield inner


def is_schema(value: Any) -> TypeGuard[Schema]:
    return isinstance(value, bool | dict)


def allows_all(schema: Any) -> bool:
    """Whether this schema says nothing."""
    return schema is True or schema == {}


def types_of(schema: dict[str, Any]) -> tuple[str, ...]:
    """The types that a schema's `type` names; empty if it has none, and so allows all."""
    given = schema.get("type")
    if isinstance(given, str):
        return (given,)
    return tuple(each for each in given if isinstance(each, str)) if isinstance(given, list) else ()


def join(path: str, *parts: object) -> str:
    """The path of a place in a schema, as errors show it."""
    return ".".join(filter(None, (path, *map(str, parts))))
