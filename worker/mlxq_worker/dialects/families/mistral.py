"""Mistral: a list of JSON behind one marker, or for each call a marker, its name and its arguments."""

from __future__ import annotations

import re

from mlxq_worker.dialects.calls import BLANKS, Call, CallSyntax, Found, Offered, skip
from mlxq_worker.dialects.dialect import Dialect, Sign
from mlxq_worker.dialects.forcing import ForcedSyntax
from mlxq_worker.dialects.json_calls import as_object, named_call, value_at

_MARKER = re.compile(r"\[TOOL_CALLS\]")
_NAMED = re.compile(r"\s*([\w./:-]+?)\s*(?:\[CALL_ID\]\s*(\w+)\s*)?(?:\[ARGS\]\s*)?(?=\{)")


def _read(text: str, position: int, offered: Offered) -> Found | None:
    calls: list[Call] = []
    while (marker := _MARKER.match(text, position)) is not None:
        found = _behind_marker(text, marker.end(), offered)
        if found is None:
            break
        calls += found.calls
        position = skip(text, found.end, BLANKS) if _MARKER.match(text, skip(text, found.end, BLANKS)) else found.end
    return Found(tuple(calls), position) if calls else None


def _behind_marker(text: str, position: int, offered: Offered) -> Found | None:
    named = _NAMED.match(text, position)
    decoded = value_at(text, named.end() if named else position)
    if decoded is None:
        return None
    if named:
        call = offered.call(named[1], as_object(decoded[0]), named[2])
        return Found((call,), decoded[1]) if call else None
    values = decoded[0] if isinstance(decoded[0], list) else [decoded[0]]
    calls = [named_call(value, offered) for value in values]
    known = tuple(call for call in calls if call is not None)
    return Found(known, decoded[1]) if known and len(known) == len(calls) else None


_SYNTAX = CallSyntax(opener=_MARKER, read=_read, marker="[TOOL_CALLS]")

MISTRAL = Dialect(
    name="mistral",
    spoken_by="Mistral from Small 3.2, Magistral, Devstral, Ministral 3",
    signs=(Sign(template=("[TOOL_CALLS]", "[ARGS]")), Sign(tokens=("[TOOL_CALLS]", "[ARGS]"))),
    syntax=_SYNTAX,
    forced=ForcedSyntax(before="[TOOL_CALLS]{name}[ARGS]", after="", between=""),
    id_style="nine",
)
MISTRAL_LIST = Dialect(
    name="mistral_list",
    spoken_by="Mistral 7B to Small 3.1, Mixtral, Nemo",
    signs=(Sign(template=("[TOOL_CALLS]",)), Sign(tokens=("[TOOL_CALLS]",))),
    syntax=_SYNTAX,
    forced=ForcedSyntax(
        before='{{"name": "{name}", "arguments": ',
        after="}}",
        before_all="[TOOL_CALLS] [",
        after_all="]",
        between=", ",
    ),
    id_style="nine",
)
