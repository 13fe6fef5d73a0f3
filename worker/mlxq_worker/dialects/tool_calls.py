"""Reads the tool calls out of a finished answer, and leaves what stands around them as its text.

Whatever is no well-formed call of an offered tool stays text. Knows formats through `ToolFormat` alone.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mlxq.contract import ToolCall
from mlxq_worker.dialects.calls import Call, IdStyle
from mlxq_worker.dialects.tool_format import ToolFormat

_NINE = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class ToolAnswer:
    """An answer's calls and the text beside them."""

    text: str
    calls: tuple[ToolCall, ...]


def draw_call_id(style: IdStyle = "openai") -> str:
    """An id that no other call has, in OpenAI's style or the model's own."""
    if style == "nine":
        return "".join(secrets.choice(_NINE) for _ in range(9))
    return f"call_{secrets.token_hex(12)}"


def split_answer(
    raw: str,
    tools: Sequence[dict[str, Any]],
    tool_format: ToolFormat,
    *,
    several: bool = True,
    draw_id: Callable[[], str] | None = None,
) -> ToolAnswer | None:
    """The calls in an answer that ended by itself, or `None` if there is none.

    Args:
        raw: the answer's text with its special tokens, without the end token.
        tools: the request's; a call of anything else is text.
        several: without it the first call is taken, and text of further calls is dropped, as in vLLM.
        draw_id: gives the ids of calls; by default in the model's own style.
    """
    pieces = tool_format.pieces(raw, tools)
    calls = [call for piece in pieces for call in piece.calls]
    if not calls:
        return None
    text = without_specials("".join(piece.text for piece in pieces), tool_format).strip()
    return ToolAnswer(text, as_tool_calls(calls if several else calls[:1], tool_format.dialect.id_style, draw_id))


def as_tool_calls(
    calls: Sequence[Call], style: IdStyle, draw_id: Callable[[], str] | None = None
) -> tuple[ToolCall, ...]:
    """Calls as answers have them, each under an id of its own: the model's, if it wrote one that is alone."""
    own = [call.id for call in calls]
    return tuple(
        ToolCall(
            id=_id(call, style, draw_id, is_alone=own.count(call.id) == 1, index=index),
            name=call.name,
            arguments=_as_text(call.arguments),
        )
        for index, call in enumerate(calls)
    )


def _as_text(arguments: dict[str, Any]) -> str:
    text = json.dumps(arguments, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a character, which only an escape can write
        return json.dumps(arguments)
    return text


def _id(call: Call, style: IdStyle, draw_id: Callable[[], str] | None, *, is_alone: bool, index: int) -> str:
    if style == "kimi":
        return call.id if call.id and is_alone else f"functions.{call.name}:{index}"
    if style == "nine" and call.id and is_alone and re.fullmatch("[A-Za-z0-9]{9}", call.id):
        return call.id
    return draw_id() if draw_id else draw_call_id(style)


def begins_call(raw: str, tool_format: ToolFormat) -> bool:
    """Whether a call begins somewhere in an answer, by its start marker."""
    return bool(tool_format.start) and tool_format.start in raw


def without_specials(text: str, tool_format: ToolFormat) -> str:
    specials = "|".join(map(re.escape, tool_format.specials))
    return re.sub(specials, "", text) if specials else text
