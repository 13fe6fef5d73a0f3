"""Random JSON schemas, by a seed: nested objects and arrays, enums, bounds, patterns, optional fields, references,
and names and values beyond ASCII. Everything is bounded, so that a model which picks tokens at random comes to an end.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

Schema = dict[str, Any]

_NAMES = ("name", "größe", "城市", "is active", 'quo"te', "a/b", "κλειδί", "emoji 🙂", "x", "id_2")
_VALUES = ("red", "grün", "青い", "", "tab\there", "line\nbreak", "🙂", 0, -7, 2.5, True, False, None)
_PATTERNS = ("^[a-f0-9]{4}$", "^(ja|nein)$", "^[A-Z][a-z]{1,5}$", r"^\d{4}-\d{2}$", "^é{2,3}$")
_DEEPEST = 3


def random_schema(random: Random) -> Schema:
    """An object's schema; one of its properties may refer to a definition."""
    return {**_object(random, 0), "$defs": {"shared": _leaf(random)}}


def _schema(random: Random, depth: int) -> Schema:
    if depth >= _DEEPEST or random.random() < 0.4:
        return _leaf(random)
    kinds: tuple[Callable[[Random, int], Schema], ...] = (_object, _object, _array, _tuple, _any_of)
    return random.choice(kinds)(random, depth)


def _leaf(random: Random) -> Schema:
    kinds = (_enum, _const, _string, _pattern, _integer, _number, _boolean, _null, _nullable)
    return random.choice(kinds)(random)


def _object(random: Random, depth: int) -> Schema:
    names = random.sample(_NAMES, random.randint(0 if depth else 1, 4))
    properties = {name: _schema(random, depth + 1) for name in names}
    if depth == 0 and random.random() < 0.3:
        properties["shared"] = {"$ref": "#/$defs/shared"}
    required = [name for name in properties if random.random() < 0.6]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _array(random: Random, depth: int) -> Schema:
    fewest = random.randint(0, 2)
    return {
        "type": "array",
        "items": _schema(random, depth + 1),
        "minItems": fewest,
        "maxItems": fewest + random.randint(0, 2),
    }


def _tuple(random: Random, depth: int) -> Schema:
    items = [_schema(random, depth + 1) for _ in range(random.randint(1, 3))]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}


def _any_of(random: Random, depth: int) -> Schema:
    return {"anyOf": [_schema(random, depth + 1) for _ in range(random.randint(1, 3))]}


def _enum(random: Random) -> Schema:
    return {"enum": random.sample(_VALUES, random.randint(1, 5))}


def _const(random: Random) -> Schema:
    return {"const": random.choice(_VALUES)}


def _string(random: Random) -> Schema:
    fewest = random.randint(0, 3)
    return {"type": "string", "minLength": fewest, "maxLength": fewest + random.randint(0, 6)}


def _pattern(random: Random) -> Schema:
    return {"type": "string", "pattern": random.choice(_PATTERNS)}


def _integer(random: Random) -> Schema:
    least = random.randint(-1000, 1000)
    return {"type": "integer", "minimum": least, "maximum": least + random.randint(0, 500)}


def _number(random: Random) -> Schema:
    least = round(random.uniform(-10, 10), 1)
    return {"type": "number", "minimum": least, "exclusiveMaximum": least + 3}


def _boolean(_random: Random) -> Schema:
    return {"type": "boolean"}


def _null(_random: Random) -> Schema:
    return {"type": "null"}


def _nullable(random: Random) -> Schema:
    return {"type": ["string", "null"], "maxLength": random.randint(1, 4)}
