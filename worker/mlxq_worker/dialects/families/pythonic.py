"""Families that write calls as Python: Llama 3.2 and 4, LFM2, Olmo 3, ToolACE, Gemma 3 by its usual prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from mlxq_worker.dialects.calls import BLANKS, Call, CallSyntax, Found, Offered, skip
from mlxq_worker.dialects.dialect import Dialect, Sign
from mlxq_worker.dialects.forcing import ForcedSyntax, TagArguments
from mlxq_worker.dialects.json_calls import named_call, value_at
from mlxq_worker.dialects.python_calls import calls_at


def _written(start: str, end: str, *, is_list: bool = True) -> Callable[[Sequence[Call]], str]:
    def one(call: Call) -> str:
        values = ", ".join(f"{key}={value!r}" for key, value in call.arguments.items())
        return f"{call.name}({values})"

    def write(calls: Sequence[Call]) -> str:
        listed = (", " if is_list else "\n").join(map(one, calls))
        return f"{start}[{listed}]{end}" if is_list else f"{start}\n{listed}\n{end}"

    return write


def _forced(start: str, end: str, between: str = ", ") -> ForcedSyntax:
    return ForcedSyntax(
        before_all=start,
        before="{name}(",
        after=")",
        after_all=end,
        between=between,
        tags=TagArguments(before="{key}=", between=", ", keys=r"[^\W\d]\w*", is_python=True),
    )


def _between(
    start: str,
    end: str,
    *,
    is_list: bool,
    is_last: bool = False,
    marker: str = "",
    openers: tuple[str, ...] = (),
    line_openers: tuple[str, ...] = (),
) -> CallSyntax:
    opener, closer = re.compile(start), re.compile(rf"\s*(?:{end})") if end else None

    def read(text: str, position: int, offered: Offered) -> Found | None:
        match = opener.match(text, position)
        if match is None:
            return None
        found = calls_at(text, match.end(), offered, is_list=is_list) or _as_json(text, match.end(), offered)
        if found is None and not is_list:
            found = calls_at(text, match.end(), offered)
        if found is None:
            return None
        position = skip(text, found.end, closer) if closer else found.end
        if is_last and text[position:].strip():
            return None
        return Found(found.calls, position)

    return CallSyntax(opener=opener, read=read, marker=marker, openers=openers, line_openers=line_openers)


def _as_json(text: str, position: int, offered: Offered) -> Found | None:
    """Some of these models write JSON between the same markers."""
    decoded = value_at(text, position)
    if decoded is None:
        return None
    values = decoded[0] if isinstance(decoded[0], list) else [decoded[0]]
    calls = tuple(call for value in values if (call := named_call(value, offered)) is not None)
    return Found(calls, skip(text, decoded[1], BLANKS)) if calls and len(calls) == len(values) else None


LFM2 = Dialect(
    name="lfm2",
    spoken_by="LFM2, LFM2.5",
    signs=(
        Sign(template=("<|tool_call_start|>",)),
        Sign(template=("<|tool_list_start|>",)),
        Sign(tokens=("<|tool_call_start|>", "<|tool_call_end|>")),
    ),
    syntax=_between(r"<\|tool_call_start\|>", r"<\|tool_call_end\|>", is_list=True, marker="<|tool_call_start|>"),
    forced=_forced("<|tool_call_start|>[", "]<|tool_call_end|>"),
    writes=_written("<|tool_call_start|>", "<|tool_call_end|>"),
)
OLMO3 = Dialect(
    name="olmo3",
    spoken_by="Olmo 3",
    signs=(Sign(template=("<function_calls>",)),),
    syntax=_between("<function_calls>", "</function_calls>", is_list=False, marker="<function_calls>"),
    forced=_forced("<function_calls>\n", "\n</function_calls>", "\n"),
    writes=_written("<function_calls>", "</function_calls>", is_list=False),
)
PYTHONIC = Dialect(
    name="pythonic",
    aliases=("llama4_pythonic", "gemma3"),
    spoken_by="Llama 3.2 and 4, ToolACE, Gemma 3",
    signs=(
        Sign(template=("[func_name1(params_name1=params_value1",)),
        Sign(template=("func_name1(param",)),
        Sign(template=("```tool_code",)),
    ),
    syntax=_between(
        r"<\|python_start\|>(?=\s*\[)|(?:\A|(?<=\n))[ \t]*(?:```(?:tool_code|tool_call|python)\s*)?(?=\[[^\W\d])",
        r"<\|python_end\|>|```",
        is_list=True,
        is_last=True,
        openers=(r"<\|python_start\|>",),
        line_openers=(r"(```(tool_code|tool_call|python)\s*)?\[[^\W\d]",),
    ),
    forced=_forced("[", "]"),
    writes=_written("", ""),
)

DIALECTS = (LFM2, OLMO3)
