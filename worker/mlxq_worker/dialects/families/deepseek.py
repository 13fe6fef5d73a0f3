"""DeepSeek: V3 and R1 write arguments in a fence of JSON, V3.1 as they are, V3.2 and V4 between tags."""

from __future__ import annotations

import re

from mlxq_worker.dialects.calls import Call, CallSyntax, Found, Offered, skip
from mlxq_worker.dialects.dialect import Dialect, Sign, as_json
from mlxq_worker.dialects.forcing import ForcedSyntax
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


_SYNTAX = CallSyntax(opener=re.compile(f"{_BEGIN_ALL}|{_BEGIN}"), read=_read, marker=_BEGIN_ALL)

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

_D = "｜DSML｜"


def _dsml(section: str) -> XmlSyntax:
    return XmlSyntax(
        begin=rf"<{_D}{section}>",
        end=rf"</{_D}{section}>",
        call=rf'<{_D}invoke\s+name="(?P<name>[^"]+)"\s*/?>',
        call_end=rf"</{_D}invoke>",
        parameter=rf'<{_D}parameter\s+name="(?P<key>[^"]+)"(?:\s+string="(?P<string>true|false)")?\s*>',
        value_end=f"</{_D}parameter>",
        marker=f"<{_D}{section}>",
    )


def _written(section: str) -> Dialect:
    def one(call: Call) -> str:
        values = (
            f'<{_D}parameter name="{key}" string="{"true" if isinstance(value, str) else "false"}">'
            f"{value if isinstance(value, str) else as_json(value)}</{_D}parameter>\n"
            for key, value in call.arguments.items()
        )
        return f'<{_D}invoke name="{call.name}">\n{"".join(values)}</{_D}invoke>\n'

    is_v4 = section == "tool_calls"
    return Dialect(
        name="deepseek_v4" if is_v4 else "deepseek_v32",
        aliases=("deepseekv4", "deepseek_v41") if is_v4 else ("deepseekv32",),
        spoken_by="DeepSeek V4" if is_v4 else "DeepSeek V3.2",
        signs=(Sign(template=(_D, section)),),
        syntax=_dsml(section).syntax(),
        writes=lambda calls: f"<{_D}{section}>\n{''.join(map(one, calls))}</{_D}{section}>",
    )


DEEPSEEK_V32 = _written("function_calls")
DEEPSEEK_V4 = _written("tool_calls")
