"""Families that write calls as JSON with a name and arguments, each family between markers of its own."""

from __future__ import annotations

from dataclasses import replace

from mlxq_worker.dialects.dialect import Dialect, Sign
from mlxq_worker.dialects.forcing import ForcedSyntax
from mlxq_worker.dialects.json_calls import JsonSyntax, single_key_call

HERMES = Dialect(
    name="hermes",
    aliases=("qwen25", "qwen", "qwen3_json", "json_tools", "granite4", "ernie45"),
    spoken_by="Hermes, Qwen 2.5 and 3, Granite 4, SmolLM3, EXAONE 4",
    signs=(
        Sign(template=("<tool_call>", "tool_call.name")),
        Sign(template=('<tool_call>\\n{\\"name\\"',)),
        Sign(template=('<tool_call>{\\"name\\"',)),
        Sign(template=('<tool_call>\\n{"name"',)),
        Sign(template=('<tool_call>\n{"name"',)),
        Sign(template=('<tool_call>{"name"',)),
    ),
    # Qwen 2.5 Coder writes the tag in which tools are listed to it.
    syntax=JsonSyntax(
        start=r"<tool_call>|<tools>(?=\s*\{)",
        end=r"\}*\s*</(?:tool_call|tools)>",
        marker="<tool_call>",
        openers=(r"<tools>\s*\{",),
    ).syntax(),
    forced=ForcedSyntax(
        before='<tool_call>\n{{"name": "{name}", "arguments": ', after="}}\n</tool_call>", between="\n"
    ),
)
LONGCAT = Dialect(
    name="longcat",
    spoken_by="LongCat",
    signs=(Sign(template=("<longcat_tool_call>",)),),
    syntax=JsonSyntax(
        start="<longcat_tool_call>", end=r"\s*</longcat_tool_call>", marker="<longcat_tool_call>"
    ).syntax(),
    forced=ForcedSyntax(
        before='<longcat_tool_call>\n{{"name": "{name}", "arguments": ', after="}}\n</longcat_tool_call>", between="\n"
    ),
)
NEMOTRON = Dialect(
    name="nemotron_json",
    aliases=("llama_nemotron_json", "nemotron_nano_v2"),
    spoken_by="Nemotron Nano 2, Llama Nemotron Super",
    signs=(Sign(template=("<TOOLCALL>",)),),
    syntax=JsonSyntax(start="<TOOLCALL>", end=r"\s*</TOOLCALL>", is_list=True, marker="<TOOLCALL>").syntax(),
    forced=ForcedSyntax(
        before='{{"name": "{name}", "arguments": ',
        after="}}",
        before_all="<TOOLCALL>[",
        after_all="]</TOOLCALL>",
        between=", ",
    ),
)
GRANITE = Dialect(
    name="granite",
    spoken_by="Granite 3",
    signs=(
        Sign(template=("<|tool_call|>", "<|start_of_role|>")),
        Sign(template=("respond only with <|tool_call|>",)),
        Sign(template=("<|tool_call|>", "granite")),
    ),
    syntax=JsonSyntax(
        start=r"<\|tool_call\|>|<tool_call>(?=\s*\[)",
        end=r"(\s*</tool_call>)?",
        is_list=True,
        marker="<|tool_call|>",
        openers=(r"<tool_call>\s*\[",),
    ).syntax(),
    forced=ForcedSyntax(
        before='{{"name": "{name}", "arguments": ',
        after="}}",
        before_all="<|tool_call|>[",
        after_all="]",
        between=", ",
    ),
)
GRANITE_20B = Dialect(
    name="granite-20b-fc",
    spoken_by="Granite 20B function calling",
    signs=(Sign(template=("<function_call>",)),),
    syntax=JsonSyntax(start=r"<function_call>", end=r"(\s*</function_call>)?", marker="<function_call>").syntax(),
    forced=ForcedSyntax(before='<function_call> {{"name": "{name}", "arguments": ', after="}}", between="\n"),
)
PHI4_MINI = Dialect(
    name="phi4_mini_json",
    aliases=("phi4_mini",),
    spoken_by="Phi-4-mini, Firefunction 2",
    signs=(
        Sign(template=("functools[",)),
        Sign(template=("<|tool|>", "<|/tool|>")),
        Sign(tokens=("<|tool_call|>", "<|/tool_call|>")),
    ),
    syntax=JsonSyntax(
        start=r"functools(?=\s*\[)|<\|tool_call\|>|(?:\A|(?<=\n))[ \t]*(?=(?:```(?:json)?\s*)?\{\"name\")",
        end=r"(\s*<\|/tool_call\|>)?",
        is_list=True,
        marker="functools[",
        openers=(r"functools\s*\[", r"<\|tool_call\|>"),
        line_openers=(r"(```(json)?\s*)?\{\"name\"",),
    ).syntax(),
    forced=ForcedSyntax(
        before='{{"name": "{name}", "arguments": ', after="}}", before_all="functools[", after_all="]", between=", "
    ),
)
JAMBA = Dialect(
    name="jamba",
    aliases=("hunyuan_a13b", "hunyuan", "minimax", "minimax_m1"),
    spoken_by="Jamba, Hunyuan A13B, MiniMax M1, Apriel",
    signs=(Sign(template=("<tool_calls>",)),),
    syntax=JsonSyntax(start="<tool_calls>", end=r"\s*</tool_calls>", marker="<tool_calls>").syntax(),
    forced=ForcedSyntax(
        before='{{"name": "{name}", "arguments": ',
        after="}}",
        before_all="<tool_calls>[",
        after_all="]</tool_calls>",
        between=", ",
    ),
)
INTERNLM = Dialect(
    name="internlm",
    aliases=("internlm2", "interns1"),
    spoken_by="InternLM 2 and 3, Intern-S1",
    signs=(Sign(template=("<|action_start|>",)),),
    syntax=JsonSyntax(
        start=r"<\|action_start\|>\s*<\|plugin\|>", end=r"\s*<\|action_end\|>", marker="<|action_start|>"
    ).syntax(),
    forced=ForcedSyntax(
        before='<|action_start|><|plugin|>\n{{"name": "{name}", "parameters": ', after="}}<|action_end|>", between="\n"
    ),
)
APERTUS = Dialect(
    name="apertus",
    aliases=("apertus2509",),
    spoken_by="Apertus",
    signs=(Sign(template=("<|tools_prefix|>",)), Sign(tokens=("<|tools_prefix|>", "<|tools_suffix|>"))),
    syntax=JsonSyntax(
        start=r"<\|tools_prefix\|>",
        end=r"\s*<\|tools_suffix\|>",
        is_list=True,
        call=single_key_call,
        marker="<|tools_prefix|>",
    ).syntax(),
    forced=ForcedSyntax(
        before='{{"{name}": ',
        after="}}",
        before_all="<|tools_prefix|>[",
        after_all="]<|tools_suffix|>",
        between=", ",
    ),
)
COHERE = Dialect(
    name="cohere_command3",
    aliases=("cohere_command4", "command_a", "command_r7b"),
    spoken_by="Command A, Command R7B",
    signs=(Sign(template=("<|START_ACTION|>",)), Sign(tokens=("<|START_ACTION|>", "<|END_ACTION|>"))),
    syntax=JsonSyntax(
        start=r"<\|START_ACTION\|>", end=r"\s*<\|END_ACTION\|>", is_list=True, marker="<|START_ACTION|>"
    ).syntax(),
    forced=ForcedSyntax(
        before='    {{"tool_call_id": "0", "tool_name": "{name}", "parameters": ',
        after="}}",
        before_all="<|START_ACTION|>[\n",
        after_all="\n]<|END_ACTION|>",
        between=",\n",
    ),
)
COMMAND_R = Dialect(
    name="command_r",
    spoken_by="Command R and R+",
    signs=(Sign(template=("Action:", "json-formatted list")), Sign(template=("Action:```json",))),
    syntax=JsonSyntax(
        start=r"Action:\s*```(?:json)?\s*",
        end=r"\s*```",
        is_list=True,
        marker="Action: ```json",
        openers=(r"Action:\s*```",),
    ).syntax(),
    forced=ForcedSyntax(
        before='    {{\n        "tool_name": "{name}",\n        "parameters": ',
        after="\n    }}",
        before_all="Action: ```json\n[\n",
        after_all="\n]```",
        between=",\n",
    ),
)

_GIGACHAT = JsonSyntax(
    start=r"(?:<\|message_sep\|>\s*)?function call<\|role_sep\|>|<\|function_call\|>",
    end=r"(\s*<\|message_sep\|>)?\s*",
    marker="function call<|role_sep|>",
    openers=(r"function call<\|role_sep\|>", r"<\|function_call\|>"),
)
GIGACHAT31 = Dialect(
    name="gigachat31",
    spoken_by="GigaChat 3.1",
    signs=(
        Sign(template=("<|function_call|>", "<|role_sep|>")),
        Sign(tokens=("<|function_call|>", "<|role_sep|>")),
    ),
    syntax=replace(_GIGACHAT, marker="<|function_call|>").syntax(),
    forced=ForcedSyntax(before='<|function_call|>{{"name": "{name}", "arguments": ', after="}}"),
)
GIGACHAT3 = Dialect(
    name="gigachat3",
    spoken_by="GigaChat 3",
    signs=(Sign(template=("function call", "<|role_sep|>")),),
    syntax=_GIGACHAT.syntax(),
    forced=ForcedSyntax(
        before='<|message_sep|>\n\nfunction call<|role_sep|>\n{{"name": "{name}", "arguments": ', after="}}"
    ),
)

DIALECTS = (
    LONGCAT,
    NEMOTRON,
    GRANITE,
    GRANITE_20B,
    APERTUS,
    COHERE,
    COMMAND_R,
    INTERNLM,
    GIGACHAT31,
    GIGACHAT3,
    JAMBA,
    PHI4_MINI,
)
