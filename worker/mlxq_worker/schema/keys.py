"""What a schema says about an object's keys, written with the keywords that the compiler enforces.

A key's own schema (`propertyNames`) becomes names or a pattern; counts of keys are kept only where no key can count
twice. Works on objects whose inner schemas are in normal form already.
"""

from __future__ import annotations

from typing import Any

from mlxq_worker.schema.keywords import Schema, SchemaError, allows_all, types_of

_OF_NAMES = frozenset({"type", "enum", "const", "pattern", "minLength", "maxLength"})


def with_names(schema: dict[str, Any], names: Schema, path: str) -> dict[str, Any]:
    """An object's schema that says of its keys what `propertyNames` said, if that is `names`.

    Raises:
        SchemaError: it can't be said.
    """
    if isinstance(names, dict) and "string" in (*types_of(names), *(() if "type" in names else ("string",))):
        names = {keyword: value for keyword, value in names.items() if keyword != "type"}
    elif isinstance(names, dict):
        names = False
    if allows_all(names):
        return schema
    if names is False:
        return _closed(schema, {})
    if isinstance(names, dict) and names.keys() <= _OF_NAMES and not schema.get("patternProperties"):
        if "enum" in names or "const" in names:
            return _closed(schema, _named(schema, names))
        pattern = _pattern(names)
        if pattern and not schema.get("properties"):
            value = schema.get("additionalProperties", True)
            return {**schema, "patternProperties": {pattern: value}, "additionalProperties": False}
    raise SchemaError(path, "propertyNames can't be enforced, but for a list of names, one pattern or a length")


def with_counts(schema: dict[str, Any], path: str) -> dict[str, Any]:
    """An object's schema without a count of keys that says nothing.

    Raises:
        SchemaError: one key, given twice, would count as two.
    """
    required = set(schema.get("required", ()))
    is_open = schema.get("additionalProperties", True) is not False or bool(schema.get("patternProperties"))
    fewest, most = schema.get("minProperties"), schema.get("maxProperties")
    kept = dict(schema)
    if fewest is not None and fewest <= len(required):
        del kept["minProperties"]
    elif fewest is not None and is_open and fewest > len(required) + 1:
        raise SchemaError(
            path,
            f"minProperties {fewest} can't be enforced where keys are free, since one that is given twice would count"
            f" twice; {len(required) + 1} can",
        )
    if most is not None and not is_open and most >= len(required | set(schema.get("properties", ()))):
        del kept["maxProperties"]
    return kept


def _named(schema: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    """The properties that a list of names leaves, in its order."""
    listed = [names["const"]] if "const" in names else names["enum"]
    declared = schema.get("properties", {})
    allowed = [name for name in listed if isinstance(name, str) and _has_length(name, names)]
    if "pattern" in names:
        raise SchemaError("", "propertyNames can't be enforced with both a list of names and a pattern")
    return {name: declared.get(name, schema.get("additionalProperties", True)) for name in allowed}


def _has_length(name: str, names: dict[str, Any]) -> bool:
    return bool(names.get("minLength", 0) <= len(name) <= names.get("maxLength", len(name)))


def _closed(schema: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    kept = {keyword: value for keyword, value in schema.items() if keyword != "patternProperties"}
    return {**kept, "properties": properties, "additionalProperties": False}


def _pattern(names: dict[str, Any]) -> str | None:
    """The one pattern of all allowed names, if one says it all."""
    if "pattern" in names:
        return None if names.keys() & {"minLength", "maxLength"} else str(names["pattern"])
    return f"^(?s:.{{{names.get('minLength', 0)},{names.get('maxLength', '')}}})$"
