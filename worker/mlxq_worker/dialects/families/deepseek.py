"""DeepSeek: V3 and R1 write arguments in a fence of JSON, V3.1 as they are, V3.2 and V4 between tags, as
GigaChat 3.5 does under another name."""

from __future__ import annotations

import re

from mlxq_worker.dialects.calls import Call, CallSyntax, Found, Offered, skip
from mlxq_worker.dialects.dialect import Dialect, Sign
from mlxq_worker.dialects.forcing import ForcedSyntax, TagArguments
from mlxq_worker.dialects.json_calls import as_object, value_at
from mlxq_worker.dialects.xml_calls import XmlSyntax

_BEGIN_ALL, _END_ALL = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_BEGIN, _SEP, _END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"

_SECTION = re.compile(_BEGIN_ALL)
_SECTION_END = re.compile(rf"\s*{_END_ALL}")
_CALL_END = re.compile(rf"\s*(?:```)?\s*{_END}")
_FENCED = re.compile(rf"\s*{_BEGIN}\s*(?:\w+\s*)?{_SEP}\s*(?P<name>[\w./:-]+)\s*```(?:json)?\s*")
_BARE = re.compile(rf"\s*{_BEGIN}\s*(?P<name>[\w./:-]+)\s*{_SEP}\s*")


def _read(text: str, position: int, offered: Offered) -> Found | None:
    position = skip(text, position, _SECTION)
    calls: list[Call] = []
    while (match := _FENCED.match(text, position) or _BARE.match(text, position)) is not None:
        decoded = value_at(text, match.end())
        call = offered.call(match["name"], as_object(decoded[0])) if decoded else None
        if decoded is None or call is None:
            return None
        calls.append(call)
        position = skip(text, decoded[1], _CALL_END)
    return Found(tuple(calls), skip(text, position, _SECTION_END)) if calls else None


_SYNTAX = CallSyntax(opener=re.compile(f"{_BEGIN_ALL}|{_BEGIN}"), read=_read, marker=_BEGIN_ALL, openers=(_BEGIN,))

DEEPSEEK_V3 = Dialect(
    name="deepseek_v3",
    aliases=("deepseekv3", "deepseek_r1"),
    spoken_by="DeepSeek V3 and R1",
    signs=(
        Sign(template=(_BEGIN_ALL, "```json")),
        Sign(template=(_BEGIN, "```json")),
    ),
    syntax=_SYNTAX,
    forced=ForcedSyntax(
        before_all=_BEGIN_ALL,
        before=f"{_BEGIN}function{_SEP}{{name}}\n```json\n",
        after=f"\n```{_END}",
        after_all=_END_ALL,
        between="\n",
    ),
)
DEEPSEEK_V31 = Dialect(
    name="deepseek_v31",
    aliases=("deepseekv31",),
    spoken_by="DeepSeek V3.1",
    signs=(Sign(template=(_BEGIN_ALL,)), Sign(template=(_BEGIN,)), Sign(tokens=(_BEGIN_ALL, _SEP))),
    syntax=_SYNTAX,
    forced=ForcedSyntax(
        before_all=_BEGIN_ALL, before=f"{_BEGIN}{{name}}{_SEP}", after=_END, after_all=_END_ALL, between=""
    ),
)


def _tagged(name: str, mark: str, section: str, *, aliases: tuple[str, ...] = (), spoken_by: str) -> Dialect:
    """Calls and values in tags with a mark, which say of each value whether it is a text."""
    syntax = XmlSyntax(
        begin=rf"<{mark}{section}>",
        end=rf"</{mark}{section}>",
        call=rf'<{mark}invoke\s+name="(?P<name>[^"]+)"\s*/?>',
        call_end=rf"</{mark}invoke>",
        parameter=rf'<{mark}parameter\s+name="(?P<key>[^"]+)"(?:\s+string="(?P<string>true|false)")?\s*>',
        value_end=f"</{mark}parameter>",
        marker=f"<{mark}{section}>",
        openers=(rf"<{mark}invoke\s",),
    )
    return Dialect(
        name=name,
        aliases=aliases,
        spoken_by=spoken_by,
        signs=(Sign(template=(mark, section)),),
        syntax=syntax.syntax(),
        forced=ForcedSyntax(
            before_all=f"<{mark}{section}>\n",
            before=f'<{mark}invoke name="{{name}}">\n',
            after=f"</{mark}invoke>\n",
            after_all=f"</{mark}{section}>",
            between="",
            tags=TagArguments(
                before=f'<{mark}parameter name="{{key}}" string="true">',
                before_other=f'<{mark}parameter name="{{key}}" string="false">',
                after=f"</{mark}parameter>\n",
                closing=f"</{mark}parameter>",
                keys=r'[^"\n]+',
            ),
        ),
    )


_DSML, _GCML = "｜DSML｜", "｜GCML｜"
DEEPSEEK_V32 = _tagged("deepseek_v32", _DSML, "function_calls", aliases=("deepseekv32",), spoken_by="DeepSeek V3.2")
DEEPSEEK_V4 = _tagged(
    "deepseek_v4", _DSML, "tool_calls", aliases=("deepseekv4", "deepseek_v41"), spoken_by="DeepSeek V4"
)
GIGACHAT35 = _tagged("gigachat35", _GCML, "tool_calls", spoken_by="GigaChat 3.5")
