"""Random JSON schemas as careless people write them, by a seed: keywords that meet where they rarely do, parts that
nothing fits, names that patterns cover, numbers at the ends of their range. About half of them can be enforced."""

from __future__ import annotations

from random import Random
from typing import Any

Schema = bool | dict[str, Any]

_NAMES = ("a", "b", "ab", "k1", "größe", 'q"t', "tab\t", "x y", "id_2")
_KEY_PATTERNS = ("^a$", "^(a|b)$", "^[ab]$", "^k", "^[a-z]{1,2}$", ".", "^$", "a", "^x y$", "^[a-c]+$", "b$")
_TEXT_PATTERNS = (
    *_KEY_PATTERNS,
    r"^\d{2}-[a-z]+$",
    "^(?=.{3,5}$)[a-z-]+$",
    r"^[^\x00-\x1f]+$",
    r"^\x01$",
    r"^[a-z]+\s[a-z]+$",
)
_VALUES = ("x", 1, 2.5, None, True, [1, "a"], {"a": 1}, "tab\there", "é", "\x01", 0, -0.0, 2**53 + 1, 1e22, 1.0, -7)
_LISTED = ("x", "y", 1, 2, None, False, "", [], {}, 'a"b')
_FORMATS = ("date", "uuid", "ipv4", "email", "uri", "time", "date-time", "hostname", "duration", "ipv6", "path", "cuid")
_KEYS: tuple[Schema, ...] = (
    {"type": "string"},
    {"pattern": "^[a-z]+$"},
    {"enum": ["a", "b"]},
    {"maxLength": 3},
    True,
    {"format": "date"},
    {"const": "a"},
)
_DEEPEST = 3


def wild_schema(random: Random) -> dict[str, Any]:
    """A schema with three definitions, to which its parts may refer, as to the whole."""
    made = _schema(random, _DEEPEST)
    schema = made if isinstance(made, dict) else {"anyOf": [made]}
    return {**schema, "$defs": {f"d{index}": _schema(random, 2) for index in range(3)}}


def _schema(random: Random, depth: int) -> Schema:
    if depth == 0 or random.random() < 0.3:
        return _leaf(random)
    kind = random.choice(("object",) * 4 + ("array", "anyOf", "oneOf", "allOf", "$ref"))
    if kind == "object":
        return _object(random, depth)
    if kind == "array":
        return _array(random, depth)
    if kind in ("anyOf", "oneOf"):
        return {kind: [_schema(random, depth - 1) for _ in range(random.randint(1, 3))]}
    if kind == "allOf":
        beside: tuple[dict[str, Any], ...] = ({}, {"type": "object"}, {"type": "string"}, {"minLength": 1})
        return {kind: [_schema(random, depth - 1) for _ in range(2)], **random.choice(beside)}
    siblings: tuple[dict[str, Any], ...] = ({}, {}, {"title": "t"}, {"type": "object"}, {"minProperties": 1})
    return {"$ref": random.choice(("#/$defs/d0", "#/$defs/d1", "#/$defs/d2", "#")), **random.choice(siblings)}


def _leaf(random: Random) -> Schema:
    plain = ("string", "integer", "number", "boolean", "null")
    leaves: tuple[Schema, ...] = (
        {"type": random.choice(plain)},
        {
            "type": "integer",
            "minimum": random.choice((0, -5, 2**53, 2**53 + 1, 10**15, -(2**63))),
            "maximum": random.choice((7, 2**53 + 3, 2**63 - 1, 10**16)),
        },
        {
            "type": "number",
            "minimum": random.choice((0, -1e5, -3.4e38, 1e-7, 0.1)),
            "exclusiveMaximum": random.choice((1e3, 1e300, 2.5, 0.3)),
        },
        {"const": random.choice(_VALUES)},
        {"enum": random.sample(_LISTED, 3)},
        {"type": "string", "minLength": random.choice((0, 1, 2.0)), "maxLength": random.choice((2, 5, 1))},
        {"type": "string", "pattern": random.choice(_TEXT_PATTERNS), **random.choice(({}, {"maxLength": 4}))},
        {"type": "string", "format": random.choice(_FORMATS)},
        {
            "type": "integer",
            "multipleOf": random.choice((2, 7, 1.5, 0.5, 100)),
            "minimum": random.choice((-3, 1, 100)),
            "maximum": random.choice((2, 3, 6, 1000)),
        },
        {"type": "number", "multipleOf": random.choice((0.5, 0.25, 3)), "minimum": 0.1, "maximum": 5.3},
        {"type": random.choice((["integer", "null"], ["string", "null"])), "minimum": 3, "maxLength": 2},
        {"maxLength": 3, "pattern": "^a"},
        {"not": {}},
        {},
        random.random() < 0.5,
    )
    return random.choice(leaves)


def _array(random: Random, depth: int) -> Schema:
    array: dict[str, Any] = {"type": "array"}
    if random.random() < 0.7:
        array["items"] = _schema(random, depth - 1)
    if random.random() < 0.3:
        array["prefixItems"] = [_schema(random, depth - 1) for _ in range(random.randint(1, 3))]
    if random.random() < 0.5:
        array["minItems"] = random.choice((0, 1, 2, 2.0, 3))
    if random.random() < 0.5:
        array["maxItems"] = random.choice((0, 1, 2, 3))
    if random.random() < 0.2:
        array["uniqueItems"] = random.random() < 0.2
    if random.random() < 0.1:
        array["contains"] = random.random() < 0.7 or {"type": "string"}
    return array


def _object(random: Random, depth: int) -> Schema:
    names = random.sample(_NAMES, random.randint(0, 4))
    made: dict[str, Any] = {"type": "object"} if random.random() < 0.9 else {}
    if random.random() < 0.8:
        made["properties"] = {name: _schema(random, depth - 1) for name in names}
    if random.random() < 0.7:
        made["required"] = [name for name in names if random.random() < 0.5] or random.sample(_NAMES, 1)
    if random.random() < 0.35:
        patterns = random.sample(_KEY_PATTERNS, random.choice((1, 1, 2)))
        made["patternProperties"] = {pattern: _schema(random, depth - 1) for pattern in patterns}
    if random.random() < 0.6:
        made["additionalProperties"] = random.choice((False, False, True, _schema(random, depth - 1)))
    if random.random() < 0.15:
        made["minProperties"] = random.choice((0, 1, 2, 3))
    if random.random() < 0.15:
        made["maxProperties"] = random.choice((0, 1, 2, 5))
    if random.random() < 0.12:
        made["propertyNames"] = random.choice(_KEYS)
    if random.random() < 0.05:
        made["unevaluatedProperties"] = False
    return made
