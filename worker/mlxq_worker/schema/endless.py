"""Finds the parts of a schema that only endless values could fit, such as a list's node that requires the next node.

A grammar of such a part lets a model begin what it can't finish. Works on schemas in normal form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxq_worker.schema.keywords import LISTS, MAPS, SINGLES, Effort, Schema, SchemaError, is_schema, types_of


def without_endless(
    root: Schema, definitions: Mapping[str, Schema], effort: Effort
) -> tuple[Schema, dict[str, Schema]]:
    """Root and definitions with `false` for each part that no finite value fits.

    Raises:
        SchemaError: no finite value fits the root.
    """
    finite: set[str] = set()  # the definitions that some finite value fits, as far as is known
    is_growing = True
    order = list(definitions)
    while is_growing:
        is_growing = False
        order.reverse()  # a chain of references is followed in one direction or the other
        for name in order:
            effort.spend()
            if name not in finite and _can_end(definitions[name], finite):
                finite.add(name)
                is_growing = True
    if not _can_end(root, finite):
        raise SchemaError("", "no finite value fits it: it requires itself again and again, or refers only to itself")
    pruned = {name: _pruned(schema, finite) for name, schema in definitions.items() if name in finite}
    return _pruned(root, finite), pruned


def _can_end(schema: Schema, finite: set[str]) -> bool:
    """Whether, the definitions in `finite` given, a finite value could fit. Looks at references alone: what can't be
    fitted for other reasons is the compiler's matter."""
    if not isinstance(schema, dict):
        return True
    if "$ref" in schema and schema["$ref"].rpartition("/")[2] not in finite:
        return False
    if not all(_can_end(part, finite) for part in schema.get("allOf", ())):
        return False
    for keyword in ("anyOf", "oneOf"):
        if schema.get(keyword) and not any(_can_end(part, finite) for part in schema[keyword]):
            return False
    types = types_of(schema)
    if types == ("object",):
        return all(_can_end(_property(schema, name), finite) for name in schema.get("required", ()))
    if types == ("array",):
        return _items_can_end(schema, finite)
    return True


def _items_can_end(schema: dict[str, Any], finite: set[str]) -> bool:
    num_items = schema.get("minItems", 0)
    prefix = schema.get("prefixItems", [])
    return all(_can_end(item, finite) for item in prefix[:num_items]) and (
        num_items <= len(prefix) or _can_end(schema.get("items", True), finite)
    )


def _property(schema: dict[str, Any], name: str) -> Schema:
    declared = schema.get("properties", {})
    if name in declared:
        found: Schema = declared[name]
        return found
    other: Schema = True if schema.get("patternProperties") else schema.get("additionalProperties", True)
    return other


def _pruned(schema: Schema, finite: set[str]) -> Schema:
    if not isinstance(schema, dict):
        return schema
    if not _can_end(schema, finite):
        return False
    pruned = dict(schema)
    for keyword in MAPS:
        if isinstance(inner := schema.get(keyword), dict):
            pruned[keyword] = {name: _pruned(each, finite) for name, each in inner.items()}
    for keyword in LISTS:
        if isinstance(inner := schema.get(keyword), list):
            pruned[keyword] = [_pruned(each, finite) for each in inner]
    for keyword in SINGLES:
        if is_schema(inner := schema.get(keyword)):
            pruned[keyword] = _pruned(inner, finite)
    return pruned
