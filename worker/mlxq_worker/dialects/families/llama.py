"""Llama 3 and 4: bare JSON with ``parameters``, alone or behind the Python tag, in a list or one behind the other.

Nothing marks where bare JSON begins, so it counts only at the start of a line, and where nothing follows it.
"""

from __future__ import annotations

from mlxq_worker.dialects.dialect import Dialect, Sign
from mlxq_worker.dialects.forcing import ForcedSyntax
from mlxq_worker.dialects.json_calls import JsonSyntax, with_arguments

LLAMA_JSON = Dialect(
    name="llama3_json",
    aliases=("llama4_json", "llama3", "xlam", "bare JSON"),
    spoken_by="Llama 3.1 to 4, xLAM",
    signs=(
        Sign(template=('{"name": "', '"parameters": ')),
        Sign(template=('{\\"name\\": ', '\\"parameters\\": ')),
        Sign(template=('{"name": function name, "parameters"',)),
    ),
    syntax=JsonSyntax(
        start=r"<\|python_(?:tag|start|end)\|>(?=\s*[\[{])|(?:\A|(?<=\n))[ \t]*(?=(?:```(?:json)?\s*)?[\[{])",
        end=r"(?:\s*<\|python_end\|>)?\s*",
        between=r"\s*[;,]?\s*",
        is_last=True,
        call=with_arguments,
        openers=(r"<\|python_(tag|start|end)\|>",),
        line_openers=(r"(```(json)?\s*)?[\[{]",),
    ).syntax(),
    forced=ForcedSyntax(before='{{"name": "{name}", "parameters": ', after="}}"),
)
