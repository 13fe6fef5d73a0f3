"""Kimi K2: a section of calls, each under an id that names its function."""

from __future__ import annotations

import re

from mlxq_worker.dialects.calls import BLANKS, Call, CallSyntax, Found, Offered, skip
from mlxq_worker.dialects.dialect import Dialect, Sign
from mlxq_worker.dialects.forcing import ForcedSyntax
from mlxq_worker.dialects.json_calls import as_object, value_at

_BEGIN = re.compile(r"<\|tool_calls?_section_begin\|>")
_END = re.compile(r"\s*<\|tool_calls?_section_end\|>")
_CALL = re.compile(
    r"\s*<\|tool_call_begin\|>\s*(?P<id>(?:functions\.)?(?P<name>[\w.-]+?)(?::\d+)?)\s*<\|tool_call_argument_begin\|>"
)
_CALL_END = re.compile(r"\s*<\|tool_call_end\|>")


def _read(text: str, position: int, offered: Offered) -> Found | None:
    position = skip(text, position, _BEGIN)
    calls: list[Call] = []
    while (match := _CALL.match(text, position)) is not None:
        decoded = value_at(text, match.end())
        call = offered.call(match["name"], as_object(decoded[0]), _own_id(match["id"])) if decoded else None
        if decoded is None or call is None:
            return None
        calls.append(call)
        position = skip(text, decoded[1], _CALL_END)
    if not calls:
        return None
    position = skip(text, position, _END)
    rest = skip(text, position, BLANKS)
    return Found(tuple(calls), rest if rest == len(text) else position)


def _own_id(text: str) -> str | None:
    return text if ":" in text else None


KIMI_K2 = Dialect(
    name="kimi_k2",
    spoken_by="Kimi K2",
    signs=(
        Sign(template=("<|tool_calls_section_begin|>",)),
        Sign(tokens=("<|tool_calls_section_begin|>", "<|tool_call_argument_begin|>")),
    ),
    syntax=CallSyntax(
        opener=re.compile(f"{_BEGIN.pattern}|<\\|tool_call_begin\\|>"),
        read=_read,
        marker="<|tool_calls_section_begin|>",
        openers=(_BEGIN.pattern, r"<\|tool_call_begin\|>"),
    ),
    # The index is every call's place in the conversation; where calls are forced the model counts.
    forced=ForcedSyntax(
        before_all="<|tool_calls_section_begin|>",
        before="<|tool_call_begin|>functions.{name}:{index}<|tool_call_argument_begin|>",
        after="<|tool_call_end|>",
        after_all="<|tool_calls_section_end|>",
        between="",
    ),
    id_style="kimi",
)
