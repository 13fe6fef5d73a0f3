"""A schema as a rule of the compiler's grammar, with what the schema's own `x-guidance` says about it.

Source of the options: llguidance's docs/json_schema.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mlxq_worker.schema.keywords import SchemaError
from mlxq_worker.schema.normal import normal_form
from mlxq_worker.schema.openness import Probe

WHITESPACE = r"\r?\n[ \t]{0,12}|[ \t]{1,2}"
"""What may stand between the parts of JSON if nothing else is said: one break with the indentation behind it, or a
blank or two. Bounded, since a model can lose itself in breaks and blanks that nothing ends."""

_OPTIONS: Mapping[str, type | tuple[type, ...]] = {
    "item_separator": str,
    "key_separator": str,
    "whitespace_flexible": bool,
    "whitespace_pattern": (str, type(None)),
    "coerce_one_of": bool,
    "lenient": bool,
    "json_allowed_escapes": (str, type(None)),
    "json_allow_general_unicode_escapes": bool,
}
_PLAIN_ESCAPES = 'nrbtf\\"'
_MAX_DEPTH = 200
"""More than llguidance takes, and less than `json.dumps` can write."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What stands behind a rule's name in Lark, what has to be tried out about the schema that it was made of, and the
    formats in that which are not enforced."""

    source: str
    probes: tuple[Probe, ...] = ()
    formats: tuple[str, ...] = ()


def json_rule(schema: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> Rule:
    """
    Args:
        options: what is asked for beside the schema, in llguidance's words; the schema's own `x-guidance` comes first.

    Raises:
        SchemaError: it can't be enforced, or is nested too deeply to be compiled.
    """
    _check_depth(schema)
    # Every row of a request asks for it again; as a key the text is compared by value.
    return _rule(json.dumps(schema), json.dumps(options or {}))


@lru_cache(maxsize=32)
def _rule(schema_text: str, options_text: str) -> Rule:
    schema = json.loads(schema_text)
    options: dict[str, Any] = json.loads(options_text) | _own_options(schema)
    try:
        form = normal_form(
            schema, lenient=options.get("lenient", False), one_of_is_any_of=options.get("coerce_one_of", False)
        )
    except RecursionError as error:
        raise SchemaError("", "its parts refer to each other too deeply") from error
    if form.plain_keys:  # only with an escape could a key be a declared one and not look like it
        escapes = options.get("json_allowed_escapes") or _PLAIN_ESCAPES
        options["json_allowed_escapes"] = escapes.replace("u", "")
    return Rule(f"%json {guided(form.schema, options)}", form.probes, form.formats)


def guided(schema: Any, options: Mapping[str, Any]) -> str:
    """A schema in normal form as JSON, with the options that the compiler reads in it."""
    if options.get("whitespace_flexible", True) and not options.get("whitespace_pattern"):
        options = {**options, "whitespace_pattern": WHITESPACE}
    body = schema if isinstance(schema, dict) else {} if schema else {"anyOf": [False]}
    return json.dumps({**body, "x-guidance": {"lenient": False, **options}})


def _own_options(schema: Mapping[str, Any]) -> dict[str, Any]:
    given = schema.get("x-guidance")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise SchemaError("x-guidance", "it must be an object")
    for name, value in given.items():
        if name not in _OPTIONS:
            raise SchemaError(f"x-guidance.{name}", f"there is no such option; there are {', '.join(_OPTIONS)}")
        if not isinstance(value, _OPTIONS[name]):
            raise SchemaError(f"x-guidance.{name}", "it has the wrong type")
    return given


def _check_depth(schema: Any) -> None:
    level = [schema]
    for _ in range(_MAX_DEPTH):
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise SchemaError("", f"the schema is nested more than {_MAX_DEPTH} deep")


def _children(node: Any) -> Iterable[Any]:
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()
