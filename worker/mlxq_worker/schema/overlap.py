"""Tells of two schemas whether any value could fit both, as far as that can be told: `oneOf` is `anyOf` where none can.

The answer "apart" is certain; "not apart" may only mean that it can't be told. Works on schemas in normal form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlxq_worker.schema.keywords import Effort, Schema, types_of

_TYPES = ("null", "boolean", "number", "string", "array", "object")
_DEEPEST = 8
_NAMES = {type(None): "null", bool: "boolean", int: "number", float: "number", str: "string", list: "array"}


class Overlap:
    """Compares schemas whose references are names in `definitions`."""

    def __init__(self, definitions: Mapping[str, Schema], effort: Effort) -> None:
        self._definitions = definitions
        self._effort = effort

    def all_apart(self, schemas: Sequence[Schema]) -> bool:
        """Whether they are told apart by one property that all of them require, which has other values in each."""
        tags = [self._tags(schema) for schema in schemas]
        for name in tags[0] if tags else ():
            values = [tag[name] for tag in tags if name in tag]
            if len(values) == len(tags) and len(set().union(*values)) == sum(map(len, values)):
                return True
        return False

    def _tags(self, schema: Schema) -> dict[str, frozenset[str]]:
        """The properties that objects of a schema must have, and that can only be certain texts, with these."""
        parts = [part for part in self._parts(schema, 0) if isinstance(part, dict)]
        if not any(types_of(part) == ("object",) for part in parts):
            return {}
        required = {name for part in parts for name in part.get("required", ())}
        tags: dict[str, frozenset[str]] = {}
        for part in parts:
            for name in required & part.get("properties", {}).keys():
                values = _values(part["properties"][name]) if isinstance(part["properties"][name], dict) else None
                if values and all(isinstance(value, str) for value in values):
                    tags[name] = frozenset(values)
        return tags

    def are_apart(self, first: Schema, second: Schema, depth: int = 0) -> bool:
        """Whether it is certain that no value fits both."""
        return depth < _DEEPEST and all(self._apart_as(kind, first, second, depth) for kind in _TYPES)

    def _apart_as(self, kind: str, first: Schema, second: Schema, depth: int) -> bool:
        """Whether no value of this type fits both."""
        self._effort.spend()
        lefts, rights = list(self._parts(first, depth)), list(self._parts(second, depth))
        if any(self._has_none(kind, part, depth) for part in (*lefts, *rights)):
            return True
        if any(self._branches_apart(kind, part, second, depth) for part in lefts):
            return True
        if any(self._branches_apart(kind, part, first, depth) for part in rights):
            return True
        return any(self._flat_apart(kind, left, right, depth) for left in lefts for right in rights)

    def _parts(self, schema: Schema, depth: int) -> Iterator[Schema]:
        """What a value has to fit, all of it: the schema's own keywords, and those of what it refers to."""
        self._effort.spend()
        yield schema
        if not isinstance(schema, dict) or depth >= _DEEPEST:
            return
        if "$ref" in schema:
            yield from self._parts(self._definitions.get(schema["$ref"].rpartition("/")[2], True), depth + 1)
        for part in schema.get("allOf", ()):
            yield from self._parts(part, depth + 1)

    def _has_none(self, kind: str, part: Schema, depth: int) -> bool:
        """Whether a part allows no value of this type at all."""
        if not isinstance(part, dict):
            return part is False
        types = {"number" if each == "integer" else each for each in types_of(part)}
        values = _values(part)
        return bool(types and kind not in types) or (
            values is not None and all(_type_name(value) != kind for value in values)
        )

    def _branches_apart(self, kind: str, part: Schema, other: Schema, depth: int) -> bool:
        if not isinstance(part, dict) or depth >= _DEEPEST:
            return False
        return any(
            all(self._apart_as(kind, branch, other, depth + 1) for branch in part[keyword])
            for keyword in ("anyOf", "oneOf")
            if keyword in part
        )

    def _flat_apart(self, kind: str, left: Schema, right: Schema, depth: int) -> bool:
        if not isinstance(left, dict) or not isinstance(right, dict):
            return False
        if self._values_apart(left, right) or self._values_apart(right, left):
            return True
        if kind == "number":
            return _is_above(left, right) or _is_above(right, left)
        if kind == "string":
            return _counts_apart(left, right, "minLength", "maxLength")
        if kind == "array":
            return _counts_apart(left, right, "minItems", "maxItems") or self._items_apart(left, right, depth)
        return kind == "object" and self._properties_apart(left, right, depth)

    def _values_apart(self, left: dict[str, Any], right: dict[str, Any]) -> bool:
        """Whether the left one is a list of values, none of which the right one takes."""
        values = _values(left)
        return values is not None and all(_is_refused(value, right) for value in values)

    def _items_apart(self, left: dict[str, Any], right: dict[str, Any], depth: int) -> bool:
        num_certain = max(left.get("minItems", 0), right.get("minItems", 0))
        num_compared = min(num_certain, 1 + max(len(each.get("prefixItems", ())) for each in (left, right)))
        return any(self.are_apart(_item(left, index), _item(right, index), depth + 1) for index in range(num_compared))

    def _properties_apart(self, left: dict[str, Any], right: dict[str, Any], depth: int) -> bool:
        """Whether a property that one of them requires can't be both of what they say of it."""
        required = {*left.get("required", ()), *right.get("required", ())}
        return any(
            self.are_apart(_property(left, name), _property(right, name), depth + 1) for name in sorted(required)
        )


def _values(schema: dict[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def _type_name(value: Any) -> str:
    return _NAMES.get(type(value), "object")


def _is_refused(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value certainly doesn't fit a schema's own keywords."""
    values = _values(schema)
    if values is not None and not any(_same(value, other) for other in values):
        return True
    kind = _type_name(value)
    types = types_of(schema)
    if types and kind not in types and not (kind == "number" and "integer" in types and value == int(value)):
        return True
    if kind == "number":
        return _is_above(schema, {"maximum": value}) or _is_above({"minimum": value}, schema)
    if kind == "string":
        return not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
    return kind == "object" and not set(schema.get("required", ())) <= set(value)


def _same(left: Any, right: Any) -> bool:
    """Whether two values may be the same JSON; of lists and objects this says so in doubt."""
    kind = _type_name(left)
    return kind == _type_name(right) and (kind in ("array", "object") or left == right)


def _is_above(high: dict[str, Any], low: dict[str, Any]) -> bool:
    """Whether all numbers of the first are larger than all of the second."""
    least = (
        max((high[name], name) for name in ("minimum", "exclusiveMinimum") if name in high)
        if ("minimum" in high or "exclusiveMinimum" in high)
        else None
    )
    most = (
        min((low[name], name != "exclusiveMaximum") for name in ("maximum", "exclusiveMaximum") if name in low)
        if ("maximum" in low or "exclusiveMaximum" in low)
        else None
    )
    if least is None or most is None:
        return False
    touches = least[1] == "exclusiveMinimum" or not most[1]
    return bool(least[0] > most[0] or (least[0] == most[0] and touches))


def _counts_apart(left: dict[str, Any], right: dict[str, Any], least: str, most: str) -> bool:
    return any(
        least in one and most in other and one[least] > other[most] for one, other in ((left, right), (right, left))
    )


def _item(schema: dict[str, Any], index: int) -> Schema:
    prefix = schema.get("prefixItems", ())
    found: Schema = prefix[index] if index < len(prefix) else schema.get("items", True)
    return found


def _property(schema: dict[str, Any], name: str) -> Schema:
    if name in schema.get("properties", {}):
        declared: Schema = schema["properties"][name]
        return declared
    if schema.get("patternProperties"):
        return True  # which of them it falls under would have to be tried
    other: Schema = schema.get("additionalProperties", True)
    return other
