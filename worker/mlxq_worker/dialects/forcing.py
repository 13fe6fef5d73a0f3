"""How calls are forced: the text around a call and its arguments, as rules of llguidance's Lark.

A syntax with JSON arguments is forced by the tool's schema as it is. In others each parameter stands on its own: texts
are JSON, or free but for what closes them, and everything else is JSON. What a syntax can't be held to is refused by
name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlxq.errors import RequestError
from mlxq_worker.schema.rule import json_rule

_KINDLESS = frozenset({"anyOf", "oneOf", "allOf", "$ref", "properties", "items"})
"""Words of a schema that say what a value is without a type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TagArguments:
    """Arguments that stand on their own, each behind its name.

    Args:
        before: stands before a value; ``{key}`` in it is the parameter.
        after: stands behind it; so may the parameter.
        closing: the text that no text may hold, by which its end is told; without it texts are JSON too.
        before_other: stands before a value that is no text, where that differs.
        after_other: stands behind it.
        between: stands between two arguments.
        keys: a regular expression for the names that can be written.
        is_python: values may be Python's own: texts in single quotes, and its words.
    """

    before: str
    after: str = ""
    closing: str = ""
    before_other: str | None = None
    after_other: str | None = None
    between: str = ""
    keys: str = r"[^<>\n]+"
    is_python: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ForcedSyntax:
    """The text of forced calls, all around the arguments: `before_all`, then for each call `before` (in which
    ``{name}`` stands for the function, and ``{index}`` for any number), its arguments, and `after`; `between` two
    calls, or `None` if one is the most. Arguments are one JSON object, or stand on their own as `tags` say. Braces in
    `before` and `after` are doubled."""

    before: str
    after: str
    before_all: str = ""
    after_all: str = ""
    between: str | None = None
    tags: TagArguments | None = None

    @property
    def begins(self) -> str:
        """What all calls begin with, up to the first's name."""
        return (self.before_all + self.before.partition("{name}")[0]).replace("{{", "{").replace("}}", "}")

    @property
    def is_each_marked(self) -> bool:
        """Whether nothing stands around all calls together."""
        return not self.before_all

    def without(self, begun: str) -> ForcedSyntax:
        """One section of calls behind a text with which it begins, which is there already."""
        if not self.is_each_marked:
            return replace(self, before_all=self.before_all.removeprefix(begun))
        return replace(self, before=self.before.removeprefix(begun.replace("{", "{{").replace("}", "}}")))


def bad_parameters(index: int, reason: str) -> RequestError:
    param = f"tools[{index}].function.parameters"
    return RequestError(f"{param} can't be held to: {reason}", param=param, code="invalid_schema")


def arguments_schema(index: int, function: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the arguments of tool `index` have to fit: a function without parameters takes none, and anything else has
    to be an object, as arguments are.

    Raises:
        RequestError: the function's parameters are no object.
    """
    schema = function.get("parameters")
    if schema is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if schema.get("type", "object") != "object":
        raise bad_parameters(index, "arguments are an object, so the schema's type has to be object")
    return {**schema, "type": "object"}


class Literals:
    """Writes texts down in Lark.

    Args:
        added: the model's added tokens by their texts: llguidance takes most of them for special ones, which text never
            gives, so they are asked for by their ids.
    """

    def __init__(self, added: Mapping[str, int]) -> None:
        self._added = added
        longest_first = sorted(added, key=len, reverse=True)
        self._pieces = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None

    def __call__(self, text: str) -> str:
        """Lark for exactly this text."""
        pieces = self._pieces.split(text) if self._pieces else [text]
        return " ".join(
            f"<[{self._added[piece]}]>" if piece in self._added else json.dumps(piece) for piece in pieces if piece
        )


class ForcedCalls:
    """Writes down the rules of one model's calls.

    Args:
        added: the model's added tokens by their texts; see `Literals`.
    """

    def __init__(self, syntax: ForcedSyntax, added: Mapping[str, int]) -> None:
        self._syntax = syntax
        self._added = added
        self._literal = Literals(added)

    def rules(self, tools: Sequence[dict[str, Any]], *, name: str, several: bool) -> str:
        """Lark rules, of which `name` stands for one call of any of `tools`, or for `several`.

        Raises:
            RequestError: a tool's parameters are no object, or nothing that this syntax can be held to.
        """
        syntax = self._syntax
        between = syntax.between
        repeat = f" ({self._literal(between)} {name}_one)*" if several and between is not None else ""
        one = " | ".join(f"{name}_{index}" for index in range(len(tools)))
        lines = [
            f"{name}: {self._literal(syntax.before_all)} {name}_one{repeat} {self._literal(syntax.after_all)}",
            f"{name}_one: {one}",
        ]
        for index, tool in enumerate(tools):
            lines += self._call(f"{name}_{index}", index, tool["function"])
        return "\n".join([*lines, ""])

    def _call(self, rule: str, index: int, function: Mapping[str, Any]) -> list[str]:
        syntax = self._syntax
        before, after = (self._around(text, function["name"]) for text in (syntax.before, syntax.after))
        schema = arguments_schema(index, function)
        try:
            if syntax.tags is None:
                return [f"{rule}: {before} {json_rule(schema).source} {after}"]
            arguments, more = self._tagged(rule, schema, syntax.tags)
        except ValueError as error:
            raise bad_parameters(index, str(error)) from error
        return [f"{rule}: {before} {arguments} {after}", *more]

    def _around(self, text: str, name: str) -> str:
        parts = text.format(name=name, index=_NUMBER).split(_NUMBER)
        return " /[0-9]{1,4}/ ".join(map(self._literal, parts))

    def _tagged(self, rule: str, schema: Mapping[str, Any], tags: TagArguments) -> tuple[str, list[str]]:
        """The parameters in the schema's order, those that aren't required maybe left out."""
        for key in ("anyOf", "oneOf", "allOf", "$ref", "patternProperties", "if", "not", "dependentRequired"):
            if key in schema:
                raise ValueError(f"this model's calls have their arguments each on its own, so {key} can't be kept to")
        required = schema.get("required") or []
        properties = schema.get("properties") or {}
        if unknown := [key for key in required if key not in properties]:
            raise ValueError(f"{unknown[0]} is required, but properties doesn't say what it is")
        if unwritable := [key for key in properties if not re.fullmatch(tags.keys, key)]:
            raise ValueError(f"this model's calls can't name a parameter {unwritable[0]!r}")
        lines: list[str] = []
        for number, (key, about) in enumerate(properties.items()):
            lines += self._argument(f"{rule}_p{number}", key, about, schema, tags)
        if not properties:
            return "", lines
        if not tags.between:
            parts = [f"{rule}_p{number}{'' if key in required else '?'}" for number, key in enumerate(properties)]
            return " ".join(parts), lines
        return f"{rule}_a0?" if not required else f"{rule}_a0", [
            *lines,
            *self._listed(rule, [key in required for key in properties], tags.between),
        ]

    def _listed(self, rule: str, are_required: Sequence[bool], between: str) -> list[str]:
        """Rules ``a0``, ``a1`` and so on for the arguments from there on, the first of them with nothing before it, and
        ``b0`` and so on for those behind another."""
        lines, last = [], len(are_required) - 1
        for number, is_required in enumerate(are_required):
            further = f" {rule}_b{number + 1}" if number < last else ""
            one = f"{rule}_p{number}{further}"
            later = f" | {rule}_a{number + 1}" if number < last and not is_required else ""
            here = f"{self._literal(between)} {rule}_p{number}"
            lines += [f"{rule}_a{number}: {one}{later}"]
            lines += [f"{rule}_b{number}: {here if is_required else f'({here})?'}{further}"]
        return lines

    def _argument(self, rule: str, key: str, about: Any, root: Mapping[str, Any], tags: TagArguments) -> list[str]:
        """Rules for a parameter with all that stands around it: a text, something else, or either."""
        about = about if isinstance(about, Mapping) else {}
        before_other = tags.before if tags.before_other is None else tags.before_other
        behind = tags.after.format(key=key)
        before, after = self._literal(tags.before.format(key=key)), self._literal(behind)
        before_other = self._literal(before_other.format(key=key))
        after_other = after if tags.after_other is None else self._literal(tags.after_other)
        definitions = {word: root[word] for word in ("$defs", "definitions") if word in root}
        if not tags.closing:
            ways = [json_rule({**definitions, **about}).source, *(_in_python(about) if tags.is_python else ())]
            return [f"{rule}: {before_other} ({' | '.join(ways)}) {after_other}"]
        if (values := _listed_values(about)) is not None:
            texts = [json.dumps(each) for each in values if isinstance(each, str)]
            others = [json.dumps(json.dumps(each)) for each in values if not isinstance(each, str)]
            ways = [f"{before} ({' | '.join(texts)}) {after}"] if texts else []
            ways += [f"{before_other} ({' | '.join(others)}) {after_other}"] if others else []
            return [f"{rule}: {' | '.join(ways)}"]
        kinds = about.get("type")
        is_text = kinds is None or kinds == "string" or (isinstance(kinds, list) and "string" in kinds)
        if not is_text or (kinds is None and set(about) & _KINDLESS):
            return [f"{rule}: {before_other} {json_rule({**definitions, **about}).source} {after_other}"]
        for word in ("pattern", "format", "minLength", "maxLength"):
            if word in about:
                raise ValueError(f"this model's calls have texts as they are, so {word} can't be kept to")
        text, more = self._free_text(f"{rule}_text", tags.closing, behind)
        ways = [f"{before} {text}"]
        if tags.before_other is not None and isinstance(kinds, list) and len(kinds) > 1:
            other = {**definitions, **about, "type": [kind for kind in kinds if kind != "string"]}
            ways.append(f"{before_other} {json_rule(other).source} {after_other}")
        return [f"{rule}: {' | '.join(ways)}", *more]

    def _free_text(self, rule: str, closing: str, after: str) -> tuple[str, list[str]]:
        """Any text up to what closes it, which is a token that text never gives, or the first to spell it out."""
        behind = after.partition(closing)[2]
        if closing in self._added:
            return f"{rule.upper()} {self._literal(closing + behind)}", [f"{rule.upper()}: /(.|\\n)*/"]
        return f"{rule} {self._literal(behind)}", [f"{rule}[suffix={json.dumps(closing)}]: /(.|\\n)*/"]


_NUMBER = "\0"
_LIMITS = frozenset({"pattern", "format", "minLength", "maxLength", "not", "if", "anyOf", "oneOf", "allOf", "$ref"})


def _in_python(about: Mapping[str, Any]) -> Iterator[str]:
    """What fits a schema and only Python writes so."""
    if (values := _listed_values(about)) is not None:
        yield from (json.dumps(repr(each)) for each in values if each is None or isinstance(each, str | bool))
        return
    kinds = about.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if "string" in kinds and not set(about) & _LIMITS:
        yield r"/'([^'\\\n]|\\[^\n])*'/"
    if "boolean" in kinds and not set(about) & _LIMITS:
        yield '"True" | "False"'
    if "null" in kinds and not set(about) & _LIMITS:
        yield '"None"'


def _listed_values(about: Mapping[str, Any]) -> list[Any] | None:
    if isinstance(about.get("enum"), list):
        return list(about["enum"])
    return [about["const"]] if "const" in about else None
