"""MiniMax M3: every tag stands behind a mark, a parameter is its own tag, and so are the members of its value.

An object's members are tags by their names, an array's are called ``item``; anything else is typed by the schema. JSON
is read as well, and so written here: it alone tells the types of what a schema leaves open.
"""

from __future__ import annotations

import re
from typing import Any

from mlxq_worker.dialects.arguments import Schema, property_schema, typed, types_of
from mlxq_worker.dialects.calls import BLANKS, Call, CallSyntax, Found, Offered, skip
from mlxq_worker.dialects.dialect import Dialect, Sign
from mlxq_worker.dialects.forcing import ForcedSyntax, TagArguments

_MARK = "]<]minimax[>["
_TAG = re.escape(_MARK) + r"\s*"
_SECTION, _SECTION_END = re.compile(rf"{_TAG}<tool_call>"), re.compile(rf"\s*{_TAG}</tool_call>")
_CALL = re.compile(rf"{_TAG}<invoke\s+name=\"?(?P<name>[^\">\n]+)\"?\s*>")
_CALL_END = re.compile(rf"\s*{_TAG}</invoke>")
_OPEN = re.compile(rf"{_TAG}<(?P<key>[^\s<>/]+)>")
_ITEM = "item"
_MOST_DEPTH = 40


def _read(text: str, position: int, offered: Offered) -> Found | None:
    position = skip(text, position, _SECTION)
    calls: list[Call] = []
    while (match := _CALL.match(text, skip(text, position, BLANKS))) is not None:
        name = offered.known_name(match["name"])
        if name is None:
            return None
        found = _members(text, match.end(), offered.schemas[name], 0)
        ended = _CALL_END.match(text, found[1]) if found else None
        if found is None or ended is None:
            return None
        calls.append(Call(name, dict(found[0])))
        position = ended.end()
    return Found(tuple(calls), skip(text, position, _SECTION_END)) if calls else None


def _members(text: str, position: int, schema: Schema, depth: int) -> tuple[list[tuple[str, Any]], int] | None:
    """The tags that stand here one behind the other, each with its value, and the index behind them."""
    members: list[tuple[str, Any]] = []
    while (match := _OPEN.match(text, skip(text, position, BLANKS))) is not None:
        key = match["key"]
        inner = _item_schema(schema) if key == _ITEM and "array" in types_of(schema) else property_schema(schema, key)
        read = _value(text, match.end(), key, inner, depth + 1)
        if read is None:
            return None
        members.append((key, read[0]))
        position = read[1]
    return members, position


def _value(text: str, position: int, key: str, schema: Schema, depth: int) -> tuple[Any, int] | None:
    if depth > _MOST_DEPTH:
        return None
    end = re.compile(rf"{_TAG}</{re.escape(key)}>")
    closed = end.search(text, position)
    if closed is None:
        return None
    if _OPEN.match(text, skip(text, position, BLANKS)) is None or types_of(schema) == {"string"}:
        return typed(text[position : closed.start()], schema), closed.end()
    found = _members(text, position, schema, depth)
    closed = end.match(text, skip(text, found[1], BLANKS)) if found else None
    if found is None or closed is None:
        return None
    members = found[0]
    is_array = "array" in types_of(schema) or ("object" not in types_of(schema) and len(members) != 1)
    if is_array and all(each == _ITEM for each, _ in members):
        return [value for _, value in members], closed.end()
    return dict(members), closed.end()


def _item_schema(schema: Schema) -> Schema:
    items = schema.get("items")
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    return {**definitions, **items} if isinstance(items, dict) else {}


MINIMAX_M3 = Dialect(
    name="minimax_m3",
    aliases=("minimax-m3",),
    spoken_by="MiniMax M3",
    signs=(Sign(template=(_MARK, "invoke")), Sign(tokens=(_MARK,))),
    syntax=CallSyntax(
        opener=re.compile(f"{_SECTION.pattern}|{_CALL.pattern}"),
        read=_read,
        marker=f"{_MARK}<tool_call>",
        openers=(r"\]<\]minimax\[>\[",),
    ),
    forced=ForcedSyntax(
        before_all=f"{_MARK}<tool_call>\n",
        before=f'{_MARK}<invoke name="{{name}}">',
        after=f"{_MARK}</invoke>\n",
        after_all=f"{_MARK}</tool_call>",
        between="",
        tags=TagArguments(before=f"{_MARK}<{{key}}>", after=f"{_MARK}</{{key}}>", closing=_MARK, keys=r"[^\s<>/]+"),
    ),
)
