"""Families that write each argument between tags, as bare text: Qwen3-Coder and those that took its syntax over, GLM,
MiniMax M2, Seed-OSS and MiniCPM."""

from __future__ import annotations

from mlxq_worker.dialects.dialect import Dialect, Sign
from mlxq_worker.dialects.forcing import ForcedSyntax, TagArguments
from mlxq_worker.dialects.xml_calls import XmlSyntax

QWEN3_CODER = Dialect(
    name="qwen3_coder",
    aliases=("qwen3_xml", "mimo", "step3p5", "nemotron_v3"),
    spoken_by="Qwen3-Coder, Qwen 3.5, Nemotron 3, Step 3.5, MiMo",
    signs=(
        Sign(template=("<tool_call>\\n<function=",)),
        Sign(template=("<tool_call>\n<function=",)),
        Sign(template=("<function=", "<parameter=")),
    ),
    syntax=XmlSyntax(
        begin="<tool_call>(?=\\s*<function=)",
        end="</tool_call>",
        call=r"<function=(?P<name>[^>\n]+)>",
        call_end="</function>",
        parameter=r"<parameter=(?P<key>[^>\n]+)>",
        value_end="</parameter>",
        is_wrapped=True,
        may_lack_value_end=True,
        marker="<tool_call>",
        openers=("<function=",),
    ).syntax(),
    forced=ForcedSyntax(
        before="<tool_call>\n<function={name}>\n",
        after="</function>\n</tool_call>",
        between="\n",
        tags=TagArguments(before="<parameter={key}>\n", after="\n</parameter>\n", closing="</parameter>"),
    ),
)
SEED_OSS = Dialect(
    name="seed_oss",
    spoken_by="Seed-OSS",
    signs=(Sign(template=("<seed:tool_call>",)), Sign(tokens=("<seed:tool_call>", "</seed:tool_call>"))),
    syntax=XmlSyntax(
        begin="<seed:tool_call>",
        end="</seed:tool_call>",
        call=r"<function=(?P<name>[^>\n]+)>",
        call_end="</function>",
        parameter=r"<parameter=(?P<key>[^>\n]+)>",
        value_end="</parameter>",
        may_lack_value_end=True,
        marker="<seed:tool_call>",
        openers=("<function=",),
    ).syntax(),
    forced=ForcedSyntax(
        before="<seed:tool_call>\n<function={name}>\n",
        after="</function>\n</seed:tool_call>",
        between="\n",
        tags=TagArguments(before="<parameter={key}>", after="</parameter>\n", closing="</parameter>"),
    ),
)
MINIMAX_M2 = Dialect(
    name="minimax_m2",
    aliases=("minimax-m2",),
    spoken_by="MiniMax M2",
    signs=(Sign(template=("<minimax:tool_call>",)), Sign(tokens=("<minimax:tool_call>",))),
    syntax=XmlSyntax(
        begin="<minimax:tool_call>",
        end="</minimax:tool_call>",
        call=r"<invoke\s+name=\"?(?P<name>[^\">\n]+)\"?\s*>",
        call_end="</invoke>",
        parameter=r"<parameter\s+name=\"?(?P<key>[^\">\n]+)\"?\s*>",
        value_end="</parameter>",
        marker="<minimax:tool_call>",
        openers=(r"<invoke\s+name=",),
    ).syntax(),
    forced=ForcedSyntax(
        before_all="<minimax:tool_call>\n",
        before='<invoke name="{name}">\n',
        after="</invoke>\n",
        after_all="</minimax:tool_call>",
        between="",
        tags=TagArguments(before='<parameter name="{key}">', after="</parameter>\n", closing="</parameter>"),
    ),
)
_GLM_SYNTAX = XmlSyntax(
    call=r"<tool_call>\s*(?P<name>[^\s<{\[]+)",
    call_end="</tool_call>",
    parameter=r"<arg_key>(?P<key>.*?)</arg_key>\s*<arg_value>",
    value_end="</arg_value>",
    marker="<tool_call>",
).syntax()
GLM47 = Dialect(
    name="glm47",
    aliases=("glm5",),
    spoken_by="GLM 4.7 and 5",
    signs=(Sign(template=("}<arg_key>",)),),
    syntax=_GLM_SYNTAX,
    forced=ForcedSyntax(
        before="<tool_call>{name}",
        after="</tool_call>",
        between="",
        tags=TagArguments(before="<arg_key>{key}</arg_key><arg_value>", after="</arg_value>", closing="</arg_value>"),
    ),
)
GLM = Dialect(
    name="glm45",
    aliases=("glm", "glm46"),
    spoken_by="GLM 4.5 and 4.6",
    signs=(Sign(template=("<arg_key>",)), Sign(tokens=("<arg_key>", "<arg_value>"))),
    syntax=_GLM_SYNTAX,
    forced=ForcedSyntax(
        before="<tool_call>{name}\n",
        after="</tool_call>",
        between="\n",
        tags=TagArguments(
            before="<arg_key>{key}</arg_key>\n<arg_value>", after="</arg_value>\n", closing="</arg_value>"
        ),
    ),
)
MINICPM5 = Dialect(
    name="minicpm5",
    spoken_by="MiniCPM 5",
    signs=(Sign(template=('<function name="', '<param name="')),),
    syntax=XmlSyntax(
        call=r'<function\s+name="(?P<name>[^"]+)"\s*>',
        call_end="</function>",
        parameter=r'<param\s+name="(?P<key>[^"]+)"\s*>',
        value_end="</param>",
        marker="<function name=",
        openers=(r"<function\s+name=",),
    ).syntax(),
    forced=ForcedSyntax(
        before='<function name="{name}">',
        after="</function>",
        between="\n",
        tags=TagArguments(before='<param name="{key}">', after="</param>", closing="</param>"),
    ),
)
HUNYUAN3 = Dialect(
    name="hy_v3",
    spoken_by="Hunyuan 3",
    signs=(Sign(template=("<tool_sep:opensource>",)), Sign(template=("tool_sep", "arg_key", ":opensource"))),
    syntax=XmlSyntax(
        begin="<tool_calls:opensource>",
        end="</tool_calls:opensource>",
        call=r"<tool_call:opensource>\s*(?P<name>[^\s<{\[]+)\s*<tool_sep:opensource>",
        call_end="</tool_call:opensource>",
        parameter=r"<arg_key:opensource>(?P<key>.*?)</arg_key:opensource>\s*<arg_value:opensource>",
        value_end="</arg_value:opensource>",
        marker="<tool_calls:opensource>",
        openers=("<tool_call:opensource>",),
    ).syntax(),
    forced=ForcedSyntax(
        before_all="<tool_calls:opensource>\n",
        before="<tool_call:opensource>{name}<tool_sep:opensource>\n",
        after="</tool_call:opensource>\n",
        after_all="</tool_calls:opensource>",
        between="",
        tags=TagArguments(
            before="<arg_key:opensource>{key}</arg_key:opensource>\n<arg_value:opensource>",
            after="</arg_value:opensource>\n",
            closing="</arg_value:opensource>",
        ),
    ),
)

DIALECTS = (HUNYUAN3, MINIMAX_M2, SEED_OSS, GLM47, GLM, QWEN3_CODER, MINICPM5)
