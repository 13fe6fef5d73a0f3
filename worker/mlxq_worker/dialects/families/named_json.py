"""Families that write a call's name in its tag, and its arguments as JSON behind it: Functionary and Solar."""

from __future__ import annotations

import re

from mlxq_worker.dialects.calls import Call, CallSyntax, Found, Offered, skip
from mlxq_worker.dialects.dialect import Dialect, Sign
from mlxq_worker.dialects.forcing import ForcedSyntax
from mlxq_worker.dialects.json_calls import as_object, value_at


def _syntax(
    *, call: str, end: str, marker: str, begin: str = "", end_all: str = "", openers: tuple[str, ...] = ()
) -> CallSyntax:
    """`call` opens a call, its group ``name`` the function and ``id`` maybe its id; `end` closes it, `begin` and
    `end_all` stand around all of them."""
    opening, closing = re.compile(rf"\s*{call}"), re.compile(rf"\s*{end}")
    begun, ended = re.compile(begin), re.compile(rf"(?:\s*{end_all})?")

    def read(text: str, position: int, offered: Offered) -> Found | None:
        position = skip(text, position, begun)
        calls: list[Call] = []
        while (match := opening.match(text, position)) is not None:
            decoded = value_at(text, match.end())
            arguments = as_object(decoded[0]) if decoded else None
            named = offered.call(match["name"], arguments, match.groupdict().get("id"))
            if decoded is None or named is None:
                return None
            calls.append(named)
            position = skip(text, decoded[1], closing)
        return Found(tuple(calls), skip(text, position, ended)) if calls else None

    return CallSyntax(
        opener=re.compile(f"{begin}|{call}" if begin else call), read=read, marker=marker, openers=openers
    )


FUNCTIONARY = Dialect(
    name="functionary_v31",
    spoken_by="Functionary 3.1",
    signs=(Sign(template=("<function=example_function_name>{",)),),
    syntax=_syntax(call=r"<function=(?P<name>[\w./:-]+)>", end="</function>", marker="<function="),
    forced=ForcedSyntax(before="<function={name}>", after="</function>", between=""),
)
SOLAR = Dialect(
    name="solar_open",
    spoken_by="Solar Open",
    signs=(Sign(template=("<|tool_call:begin|>",)), Sign(tokens=("<|tool_call:begin|>", "<|tool_call:args|>"))),
    syntax=_syntax(
        begin=r"<\|tool_calls\|>",
        call=r"<\|tool_call:begin\|>\s*(?P<id>[^<]*)<\|tool_call:name\|>\s*(?P<name>[\w./:-]+)\s*<\|tool_call:args\|>",
        end=r"<\|tool_call:end\|>",
        end_all=r"<\|calls\|>",
        marker="<|tool_calls|>",
        openers=(r"<\|tool_call:begin\|>",),
    ),
    forced=ForcedSyntax(
        before_all="<|tool_calls|>",
        before="<|tool_call:begin|>call_{index}<|tool_call:name|>{name}<|tool_call:args|>",
        after="<|tool_call:end|>",
        after_all="<|calls|>",
        between="",
    ),
)

DIALECTS = (SOLAR, FUNCTIONARY)
