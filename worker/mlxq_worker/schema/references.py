"""Finds what a `$ref` in a JSON schema means: pointers, anchors and the ids of schemas, all inside one document.

Source: JSON Schema 2020-12 core, sections 8.2 and 9; RFC 6901 for pointers. Nothing is ever fetched.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from mlxq_worker.schema.keywords import Schema, SchemaError, children, is_schema

_ROOT = "http://schema.invalid/"
"""The base of a document that names none."""


class References:
    """The references of one document."""

    def __init__(self, root: Schema) -> None:
        self._resources: dict[str, Schema] = {}
        self._anchors: dict[str, Schema] = {}
        self._bases: dict[int, str] = {}  # by the identity of schemas, which live as long as the document
        self._root_base = _joined(_ROOT, _id(root) or "")
        self._resources[_ROOT] = self._resources[urldefrag(self._root_base).url] = root
        self._walk(root, _ROOT)

    def target(self, schema: dict[str, Any], path: str) -> Schema:
        """What the `$ref` of a schema refers to.

        Raises:
            SchemaError: it refers to nothing in this document.
        """
        ref = schema["$ref"]
        if not isinstance(ref, str):
            raise SchemaError(path, "$ref must be a string")
        url, fragment = urldefrag(_joined(self._bases.get(id(schema), self._root_base), ref))
        found: Any = self._resources.get(url)
        if fragment and not fragment.startswith("/"):
            found = self._anchors.get(f"{url}#{fragment}")
        elif fragment:
            found = _at(found, fragment)
        if not is_schema(found):
            raise SchemaError(path, f"$ref {ref} refers to nothing in this schema")
        return found

    def _walk(self, root: Schema, base: str) -> None:
        level = [(root, base)]
        while level:
            schema, outer = level.pop()
            if not isinstance(schema, dict):
                continue
            inner = _joined(outer, _id(schema) or "")
            self._bases[id(schema)] = inner
            url = urldefrag(inner).url
            if _id(schema):
                self._resources.setdefault(url, schema)
            for keyword in ("$anchor", "$dynamicAnchor"):
                if isinstance(anchor := schema.get(keyword), str):
                    self._anchors[f"{url}#{anchor}"] = schema
            level.extend((child, inner) for child in children(schema))


def _joined(base: str, reference: str) -> str:
    try:
        return urljoin(base, reference)
    except ValueError as error:  # such as a bracket that begins no address
        raise SchemaError("", f"{reference} is no reference") from error


def _id(schema: Schema) -> str | None:
    """A schema's own name; in draft 4 and before `id`, which may as well be a property's name elsewhere."""
    given = schema.get("$id", schema.get("id")) if isinstance(schema, dict) else None
    return given if isinstance(given, str) else None


def _at(resource: Any, pointer: str) -> Any:
    found = resource
    for part in unquote(pointer).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict):
            found = found.get(key)
        elif isinstance(found, list) and key.isdigit() and int(key) < len(found):
            found = found[int(key)]
        else:
            return None
    return found
