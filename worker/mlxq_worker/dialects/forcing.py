"""How calls are forced: the text around a call and its arguments, as rules of llguidance's Lark.

A syntax with JSON arguments is forced by the tool's schema as it is. One with tags has each parameter on its own: texts
are free but for the closing tag, everything else is JSON. What a syntax can't be held to is refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlxq.errors import RequestError
from mlxq_worker.schema.rule import json_rule

_KINDLESS = frozenset({"anyOf", "oneOf", "allOf", "$ref", "properties", "items"})
"""Words of a schema that say what a value is without a type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TagArguments:
    """Arguments between tags: `before` (in which ``{key}`` stands for the parameter) and `after` each value; `closing`
    is the text that no value may hold, by which its end is told."""

    before: str
    after: str
    closing: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ForcedSyntax:
    """The text of forced calls, all around the arguments: `before_all`, then for each call `before` (in which
    ``{name}`` stands for the function), its arguments, and `after`; `between` two calls, or `None` if one is the most.
    Arguments are one JSON object, or stand between `tags`. Braces in `before` and `after` are doubled."""

    before: str
    after: str
    before_all: str = ""
    after_all: str = ""
    between: str | None = None
    tags: TagArguments | None = None


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
        before, after = (self._literal(text.format(name=function["name"])) for text in (syntax.before, syntax.after))
        schema = arguments_schema(index, function)
        try:
            if syntax.tags is None:
                return [f"{rule}: {before} {json_rule(schema).source} {after}"]
            arguments, more = self._tagged(rule, schema, syntax.tags)
        except ValueError as error:
            raise bad_parameters(index, str(error)) from error
        return [f"{rule}: {before} {arguments} {after}", *more]

    def _tagged(self, rule: str, schema: Mapping[str, Any], tags: TagArguments) -> tuple[str, list[str]]:
        """The parameters in the schema's order, those that aren't required maybe left out."""
        for key in ("anyOf", "oneOf", "allOf", "$ref", "patternProperties", "if", "not", "dependentRequired"):
            if key in schema:
                raise ValueError(f"this model's calls have their arguments between tags, so {key} can't be kept to")
        required = schema.get("required") or []
        properties = schema.get("properties") or {}
        if unknown := [key for key in required if key not in properties]:
            raise ValueError(f"{unknown[0]} is required, but properties doesn't say what it is")
        parts, lines = [], []
        for number, (key, about) in enumerate(properties.items()):
            name = f"{rule}_p{number}"
            parts.append(name if key in required else f"{name}?")
            value, more = self._value(f"{rule}_v{number}", about, schema, tags)
            lines += [f"{name}: {self._literal(tags.before.format(key=key))} {value}", *more]
        return " ".join(parts), lines

    def _value(self, rule: str, about: Any, root: Mapping[str, Any], tags: TagArguments) -> tuple[str, list[str]]:
        """One value with its closing tag, and further lines that this needs."""
        about = about if isinstance(about, Mapping) else {}
        after = self._literal(tags.after)
        if isinstance(about.get("enum"), list) or "const" in about:
            values = about["enum"] if isinstance(about.get("enum"), list) else [about["const"]]
            texts = [each if isinstance(each, str) else json.dumps(each) for each in values]
            return f"{rule} {after}", [f"{rule}: {' | '.join(map(json.dumps, texts))}"]
        kinds = about.get("type")
        is_text = kinds is None or kinds == "string" or (isinstance(kinds, list) and "string" in kinds)
        if not is_text or (kinds is None and set(about) & _KINDLESS):
            definitions = {key: root[key] for key in ("$defs", "definitions") if key in root}
            return f"{rule} {after}", [f"{rule}: {json_rule({**definitions, **about}).source}"]
        for key in ("pattern", "format", "minLength", "maxLength"):
            if key in about:
                raise ValueError(f"this model's calls have texts between tags, so {key} can't be kept to")
        return self._free_text(rule, tags)

    def _free_text(self, rule: str, tags: TagArguments) -> tuple[str, list[str]]:
        """Any text up to the closing tag, which is a token that text never gives, or the first to spell it out."""
        behind = tags.after.partition(tags.closing)[2]
        if tags.closing in self._added:
            closing = self._literal(tags.closing + behind)
            return f"{rule.upper()} {closing}", [f"{rule.upper()}: /(.|\\n)*/"]
        return f"{rule} {self._literal(behind)}", [f"{rule}[suffix={json.dumps(tags.closing)}]: /(.|\\n)*/"]
