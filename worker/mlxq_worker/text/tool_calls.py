"""Reads the tool calls out of a finished answer, and leaves what stands around them as its text.

Whatever is no well-formed call of an offered tool stays text. Knows formats through `ToolFormat` alone.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from mlxq.contract import ToolCall
from mlxq_worker.model.tool_formats import ToolFormat

_MOST_ENDS = 8
"""End markers that are tried for one call: each costs a parse of all before it."""


@dataclass(frozen=True, slots=True)
class ToolAnswer:
    """An answer's calls and the text beside them."""

    text: str
    calls: tuple[ToolCall, ...]


def draw_call_id() -> str:
    """An id in OpenAI's style; ids of different answers differ too."""
    return f"call_{secrets.token_hex(12)}"


def split_answer(
    raw: str,
    tools: Sequence[dict[str, Any]],
    tool_format: ToolFormat,
    *,
    several: bool = True,
    draw_id: Callable[[], str] = draw_call_id,
) -> ToolAnswer | None:
    """The calls in an answer that ended by itself, or `None` if there is none.

    Args:
        raw: the answer's text with its special tokens, without the end token.
        tools: the request's; a call of anything else is text.
        several: without it the first call is taken, and text of further calls is dropped, as in vLLM.
    """
    pieces = list(_pieces(raw, tools, tool_format))
    calls = [call for piece in pieces for call in piece.calls]
    if not calls:
        return None
    text = _without_specials("".join(piece.text for piece in pieces), tool_format).strip()
    kept = calls if several else calls[:1]
    return ToolAnswer(text, tuple(ToolCall(id=draw_id(), name=each.name, arguments=each.arguments) for each in kept))


def begins_call(raw: str, tool_format: ToolFormat) -> bool:
    """Whether a call begins somewhere in an answer, by its start marker."""
    return bool(tool_format.start) and tool_format.start in raw


@dataclass(frozen=True, slots=True)
class _Call:
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of an answer: either calls, or text."""

    text: str = ""
    calls: tuple[_Call, ...] = ()


def _pieces(raw: str, tools: Sequence[dict[str, Any]], tool_format: ToolFormat) -> Iterator[_Piece]:
    """The answer cut at the calls' start markers, and read."""
    if not tool_format.start:
        calls = _calls(raw, tools, tool_format)
        yield _Piece(calls=calls) if calls else _Piece(raw)
        return
    before, *parts = raw.split(tool_format.start)
    yield _Piece(before)
    for part in parts:
        yield from _begun(part, tools, tool_format)


def _begun(part: str, tools: Sequence[dict[str, Any]], tool_format: ToolFormat) -> tuple[_Piece, ...]:
    """What follows a start marker: calls and the text behind them, or text altogether."""
    for body, rest in _bodies(part, tool_format.end):
        if calls := _calls(body, tools, tool_format):
            return _Piece(calls=calls), _Piece(rest)
    return (_Piece(tool_format.start + part),)


def _bodies(part: str, end: str) -> Iterator[tuple[str, str]]:
    """Where calls may end, and what is left behind them: at an end marker, the first one first, since an argument may
    spell one out. Calls that aren't closed go to the end, as some models leave them."""
    if not end or end not in part:
        yield part, ""
        return
    for match in islice(re.finditer(re.escape(end), part), _MOST_ENDS):
        yield part[: match.start()], part[match.end() :]


def _calls(body: str, tools: Sequence[dict[str, Any]], tool_format: ToolFormat) -> tuple[_Call, ...]:
    """The calls that this text is; none if any of them isn't well-formed."""
    names = {tool["function"]["name"] for tool in tools}
    try:
        return tuple(_checked(call, names) for call in tool_format.parse(body, tools))
    except Exception:  # noqa: BLE001  a parser on a model's text may fail in any way; the text is kept
        return ()


def _checked(call: Mapping[str, Any], names: set[str]) -> _Call:
    """The call, if it is one: of an offered tool, with an object of arguments.

    Raises:
        ValueError: it is none.
    """
    name, arguments = call["name"], call.get("arguments", {})
    if isinstance(arguments, str):  # some templates write them as JSON in a string
        arguments = json.loads(arguments)
    if name not in names or not isinstance(arguments, dict):
        raise ValueError(f"no call of an offered tool: {call}")
    return _Call(name, json.dumps(arguments, ensure_ascii=False, allow_nan=False))


def _without_specials(text: str, tool_format: ToolFormat) -> str:
    specials = "|".join(map(re.escape, tool_format.specials))
    return re.sub(specials, "", text) if specials else text
