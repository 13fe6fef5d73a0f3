"""Brings a schema into normal form: the keywords that the compiler enforces, meant as it enforces them, and no other.

Annotations and what says nothing are left out, references become names in `$defs`, and what the compiler lacks is said
with what it has. What can't be said is refused by its keyword and its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mlxq_worker.schema.endless import without_endless
from mlxq_worker.schema.keys import with_counts, with_names
from mlxq_worker.schema.keywords import (
    COUNTS,
    FORMATS,
    Effort,
    Schema,
    SchemaError,
    allows_all,
    is_schema,
    join,
    types_of,
)
from mlxq_worker.schema.numbers import check_value, with_bounds
from mlxq_worker.schema.openness import Openness, Probe
from mlxq_worker.schema.overlap import Overlap
from mlxq_worker.schema.patterns import without_lookahead
from mlxq_worker.schema.references import References

_AS_THEY_ARE = frozenset(
    {
        "type",
        "required",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
    }
)
_MAPS = ("properties", "patternProperties")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLES = ("items", "additionalProperties")
_SHAPES: dict[str, Callable[[Any], bool]] = {
    "required": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "enum": lambda value: isinstance(value, list),
    "format": lambda value: isinstance(value, str),
    "pattern": lambda value: isinstance(value, str),
}
"""What other values would be taken for something else here, before the compiler sees them."""
_ALL_PATTERNS = " patterns"
"""Stands, while a schema is read, for what becomes a part of its `allOf`."""
_NEVER = ("$dynamicRef", "$recursiveRef")
_NAME = re.compile(r"\W+")


@dataclass(frozen=True, slots=True)
class NormalForm:
    """A schema in normal form. `formats` are those that are not enforced, `probes` what has to be possible in it, and
    `plain_keys` says that keys must not be spelled with escapes, since one could then be a declared one in disguise."""

    schema: Schema
    formats: tuple[str, ...]
    probes: tuple[Probe, ...]
    plain_keys: bool


def normal_form(schema: Schema, *, lenient: bool = False, one_of_is_any_of: bool = False) -> NormalForm:
    """
    Args:
        schema: not nested deeper than a few hundred levels.
        lenient: leave out what can't be enforced.
        one_of_is_any_of: take each `oneOf` for `anyOf`.

    Raises:
        SchemaError: it can't be enforced.
    """
    effort = Effort()
    reader = _Reader(References(schema), lenient, effort)
    root = reader.read(schema, "")
    reader.read_definitions()
    root, definitions = without_endless(root, reader.definitions, effort)
    decided = _OneOf(Overlap(definitions, effort), is_any_of=one_of_is_any_of or lenient)
    root = decided.decide(root, "")
    definitions = {name: decided.decide(each, f"$defs.{name}") for name, each in definitions.items()}
    openness = Openness(definitions, effort)
    for each in (root, *definitions.values()):
        openness.look_at(each)
    if definitions and isinstance(root, dict):
        root = {**root, "$defs": definitions}
    return NormalForm(root, tuple(sorted(reader.formats)), openness.probes, openness.plain_keys)


@dataclass
class _Reader:
    """Reads one document. `definitions` are the targets of its references, in normal form, by name."""

    references: References
    lenient: bool
    effort: Effort
    formats: set[str] = field(default_factory=set)
    definitions: dict[str, Schema] = field(default_factory=dict)
    _names: dict[int, str] = field(default_factory=dict)  # by the identity of targets
    _waiting: list[tuple[str, Schema]] = field(default_factory=list)

    def read_definitions(self) -> None:
        while self._waiting:
            name, schema = self._waiting.pop()
            self.definitions[name] = self.read(schema, f"$defs.{name}")

    def read(self, schema: Any, path: str) -> Schema:
        """One schema in normal form."""
        self.effort.spend()
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise SchemaError(path, "a schema must be an object, true or false")
        read: dict[str, Any] = {}
        for keyword, value in schema.items():
            read |= self._keyword(schema, keyword, value, path)
        if len(aheads := read.pop(_ALL_PATTERNS, ())) > 1:
            read["allOf"] = [*read.get("allOf", ()), *({"pattern": each} for each in aheads)]
        read = self._with_items(schema, read, path)
        if not self._with_negation(schema, path) or not self._with_condition(schema, read, path):
            return False
        read = self._with_contents(schema, read, path)
        read = self._with_keys(schema, read, path)
        return with_bounds(read, path)

    def _keyword(self, schema: dict[str, Any], keyword: str, value: Any, path: str) -> dict[str, Any]:
        """What becomes of a keyword that is enforced as it stands, or of one that is an annotation."""
        place = join(path, keyword)
        if keyword in _SHAPES and not _SHAPES[keyword](value):
            raise SchemaError(place, "its value is none that this keyword can have")
        if keyword in _AS_THEY_ARE:
            return {keyword: value}
        if keyword in COUNTS:
            return {keyword: _count(value, place)}
        if keyword in ("const", "enum"):
            check_value(value, place)
            return {keyword: value}
        if keyword == "format":
            return self._format(schema, value)
        if keyword == "$ref":
            return self._reference(schema, path)
        if keyword == "pattern":
            return self._pattern(value, place)
        if keyword in _MAPS and isinstance(value, dict):
            return {keyword: {name: self.read(each, join(place, name)) for name, each in value.items()}}
        if keyword in _LISTS and isinstance(value, list):
            return {keyword: [self.read(each, join(place, index)) for index, each in enumerate(value)]}
        if keyword in _SINGLES and is_schema(value):
            return {keyword: self.read(value, place)}
        if keyword in (*_MAPS, *_LISTS):
            raise SchemaError(place, f"it must be {'an object' if keyword in _MAPS else 'a list'} of schemas")
        if keyword in _SINGLES and not isinstance(value, list):
            raise SchemaError(place, "it must be a schema: an object, true or false")
        if keyword in _NEVER:
            self._refuse(place, "it can't be enforced; use $ref")
        return {}

    def _pattern(self, pattern: Any, path: str) -> dict[str, Any]:
        """A pattern that looks ahead at its start is several, all of which have to fit."""
        if not isinstance(pattern, str):
            return {"pattern": pattern}
        try:
            patterns = without_lookahead(pattern)
        except ValueError as error:
            self._refuse(path, str(error))
            return {}
        return {"pattern": pattern} if len(patterns) == 1 else {_ALL_PATTERNS: patterns}

    def _refuse(self, path: str, reason: str) -> None:
        if not self.lenient:
            raise SchemaError(path, reason)

    def _format(self, schema: dict[str, Any], name: Any) -> dict[str, Any]:
        if name in FORMATS or not isinstance(name, str):
            return {"format": name}
        if "string" in (types_of(schema) or ("string",)):
            self.formats.add(name)
        return {}

    def _without_format(self, names: Schema) -> Schema:
        """Of a key, where the compiler enforces none, any format is an annotation."""
        if not isinstance(names, dict) or "format" not in names:
            return names
        self.formats.add(names["format"])
        return {keyword: value for keyword, value in names.items() if keyword != "format"}

    # --- References -------------------------------------------------------------------------------------------

    def _reference(self, schema: dict[str, Any], path: str) -> dict[str, Any]:
        target = self.references.target(schema, path)
        if isinstance(target, bool):
            return {} if target else {"allOf": [False]}
        if (_says_more(schema) or _says_more(target)) and self._leads_back(target, schema, path, set()):
            return {}  # that it fits itself says nothing
        if id(target) not in self._names:
            self._names[id(target)] = self._name(schema["$ref"])
            self._waiting.append((self._names[id(target)], target))
        return {"$ref": f"#/$defs/{self._names[id(target)]}"}

    def _leads_back(self, target: Schema, schema: dict[str, Any], path: str, seen: set[int]) -> bool:
        """Whether what fits the target has to fit the schema, too, which refers to it."""
        self.effort.spend()
        if target is schema:
            return True
        if not isinstance(target, dict) or id(target) in seen:
            return False
        seen.add(id(target))
        parts = [part for part in target.get("allOf", ()) if is_schema(part)]
        if "$ref" in target:
            parts.append(self.references.target(target, path))
        return any(self._leads_back(part, schema, path, seen) for part in parts)

    def _name(self, ref: str) -> str:
        wanted = _NAME.sub("_", ref.rpartition("/")[2]).strip("_") or "root"
        taken = set(self._names.values())
        return next(name for name in _numbered(wanted) if name not in taken)

    # --- What the compiler lacks ------------------------------------------------------------------------------

    def _with_items(self, schema: dict[str, Any], read: dict[str, Any], path: str) -> dict[str, Any]:
        """Before 2020-12 a list in `items` is what `prefixItems` is now, and `additionalItems` what `items` is."""
        if not isinstance(schema.get("items"), list):
            return read
        prefix = [self.read(each, join(path, "items", index)) for index, each in enumerate(schema["items"])]
        rest = schema.get("additionalItems", True)
        return {**read, "prefixItems": prefix, "items": self.read(rest, join(path, "additionalItems"))}

    def _with_negation(self, schema: dict[str, Any], path: str) -> bool:
        """Whether `not` leaves anything; what it forbids in part can't be enforced."""
        if "not" not in schema:
            return True
        forbidden = self.read(schema["not"], join(path, "not"))
        if forbidden is not False and not allows_all(forbidden):
            self._refuse(join(path, "not"), "it can't be enforced")
            return True
        return forbidden is False

    def _with_condition(self, schema: dict[str, Any], read: dict[str, Any], path: str) -> bool:
        """Whether the condition leaves anything. Without a consequence it says nothing."""
        outcomes = [keyword for keyword in ("then", "else") if not allows_all(schema.get(keyword, True))]
        if "if" not in schema or not outcomes:
            return True
        condition = self.read(schema["if"], join(path, "if"))
        if condition is not False and not allows_all(condition):
            self._refuse(join(path, "if"), "a condition can't be enforced; use anyOf")
            return True
        taken = self.read(schema.get("else" if condition is False else "then", True), join(path, "if"))
        if not allows_all(taken):
            read["allOf"] = [*read.get("allOf", ()), taken]
        return taken is not False

    def _with_contents(self, schema: dict[str, Any], read: dict[str, Any], path: str) -> dict[str, Any]:
        """What an array says of all its items together."""
        if schema.get("uniqueItems") is True and read.get("maxItems", 2) > 1:
            self._refuse(join(path, "uniqueItems"), "it can't be enforced: leave it out, or set it to false")
        if not allows_all(schema.get("unevaluatedItems", True)):
            self._refuse(join(path, "unevaluatedItems"), "it can't be enforced; use items")
        if "contains" not in schema:
            return read
        place = join(path, "contains")
        contained = self.read(schema["contains"], place)
        fewest = _count(schema.get("minContains", 1), join(path, "minContains"))
        if allows_all(contained):
            most = _count(schema["maxContains"], join(path, "maxContains")) if "maxContains" in schema else None
            counts = {"minItems": max(fewest, read.get("minItems", 0))}
            if most is not None:
                counts["maxItems"] = min(most, read.get("maxItems", most))
            return read | counts
        if fewest > 0 or "maxContains" in schema:
            self._refuse(place, "it can't be enforced; use items")
        return read

    def _with_keys(self, schema: dict[str, Any], read: dict[str, Any], path: str) -> dict[str, Any]:
        """What an object says of all its keys together."""
        for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
            needs = schema.get(keyword, {})
            if not isinstance(needs, dict):
                raise SchemaError(join(path, keyword), "it must be an object")
            for name, needed in needs.items():
                if not self._is_met(needed, read):
                    self._refuse(join(path, keyword, name), "it can't be enforced; use anyOf")
        read = self._with_unevaluated(schema, read, path)
        try:
            if "propertyNames" in schema:
                names = self._followed(self.read(schema["propertyNames"], join(path, "propertyNames")))
                read = with_names(read, self._without_format(names), path)
            return with_counts(read, path)
        except SchemaError:
            if not self.lenient:
                raise
            return {keyword: value for keyword, value in read.items() if keyword != "minProperties"}

    def _is_met(self, needed: Any, read: dict[str, Any]) -> bool:
        if isinstance(needed, list):
            return all(name in read.get("required", ()) for name in needed)
        return allows_all(needed)

    def _with_unevaluated(self, schema: dict[str, Any], read: dict[str, Any], path: str) -> dict[str, Any]:
        """Beside nothing that could evaluate more properties it means `additionalProperties`."""
        rest = schema.get("unevaluatedProperties", True)
        if allows_all(rest) or "additionalProperties" in schema:
            return read
        if schema.keys() & {"$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas"}:
            self._refuse(join(path, "unevaluatedProperties"), "it can't be enforced here; use additionalProperties")
            return read
        return {**read, "additionalProperties": self.read(rest, join(path, "unevaluatedProperties"))}

    def _followed(self, schema: Schema) -> Schema:
        """What a schema that only refers to another one says."""
        while isinstance(schema, dict) and schema.keys() == {"$ref"}:
            self.read_definitions()
            target = self.definitions.get(schema["$ref"].rpartition("/")[2])
            if target is None:
                return schema  # it is being read, since it refers to itself
            schema = target
        return schema


@dataclass(frozen=True, slots=True)
class _OneOf:
    """Turns `oneOf` into `anyOf` where no value fits two of its branches, or where that is asked for."""

    overlap: Overlap
    is_any_of: bool

    def decide(self, schema: Schema, path: str) -> Schema:
        if not isinstance(schema, dict):
            return schema
        decided: dict[str, Any] = {}
        for keyword, value in schema.items():
            place = join(path, keyword)
            if keyword in _MAPS:
                decided[keyword] = {name: self.decide(each, join(place, name)) for name, each in value.items()}
            elif keyword in _LISTS:
                decided[keyword] = [self.decide(each, join(place, index)) for index, each in enumerate(value)]
            elif keyword in _SINGLES:
                decided[keyword] = self.decide(value, place)
            else:
                decided[keyword] = value
        if "oneOf" in decided:
            branches = decided.pop("oneOf")
            self._check(schema["oneOf"], {**schema, "oneOf": []}, join(path, "oneOf"))
            decided |= _any_of(branches, decided)
        return decided

    def _check(self, branches: list[Schema], around: dict[str, Any], path: str) -> None:
        """Each branch with all that stands around it, which may set them apart."""
        del around["oneOf"]
        if self.is_any_of or self.overlap.all_apart(branches):
            return
        whole: list[Schema] = [{"allOf": [branch, around]} for branch in branches]
        for index, first in enumerate(whole):
            for other, second in enumerate(whole[:index]):
                if not self.overlap.are_apart(second, first):
                    raise SchemaError(
                        path,
                        f"that exactly one fits can't be enforced, and a value may fit both branch {other} and branch"
                        f' {index}: use anyOf, or set "x-guidance": {{"coerce_one_of": true}} in the schema to have it'
                        " taken for that",
                    )


def _says_more(schema: dict[str, Any]) -> bool:
    """Whether it says anything but that it fits others."""
    spoken = {*_AS_THEY_ARE, *COUNTS, *_MAPS, *_LISTS, *_SINGLES, "const", "enum", "format", "pattern"}
    return not spoken.isdisjoint(schema.keys() - {"allOf"})


def _any_of(branches: list[Schema], beside: dict[str, Any]) -> dict[str, Any]:
    if "anyOf" not in beside:
        return {"anyOf": branches}
    return {"allOf": [*beside.get("allOf", ()), {"anyOf": branches}]}


def _count(value: Any, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 0:
        raise SchemaError(path, "it must be a whole number of at least 0")
    return int(value)


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}_{number}"
        number += 1
