"""What is made of a chat template: one row of a table, every cell ``right`` or a refusal, none silently wrong.

The template gets a byte-level tokenizer whose special tokens are those that the template spells out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.support.scripted_models import byte_level_tokenizer
from transformers import PreTrainedTokenizerFast

from mlxq.errors import RequestError
from mlxq_worker.dialects.reasoning import reasoning_markers_of
from mlxq_worker.dialects.tool_format import own_call, reads_own_call, tool_format_of
from mlxq_worker.model.chat import ChatRenderer
from mlxq_worker.model.turn_end import find_turn_ends

COLUMNS = ("plain", "system", "tools", "tool history", "turn end", "reasoning", "tool format", "own call")

_TOKENS = re.compile(
    r"<[|｜][^<>\s'\"{}]{1,40}[|｜]>|<[|][a-z_\"]{1,20}>|<[a-z_\"]{1,20}[|]>|\[/?[A-Z_]{2,20}\]|</?think>|"
    r"<(?:start|end)_of_turn>|</?tool_call>|<(?:start|end)_function_(?:call|response)>|<escape>|<[es]o[tm]_id>|"
    r"</?seed:[a-z_]+>|</?minimax:[a-z_]+>|</?arg_(?:key|value)>|\[\|\w+\|\]|<[|]?END_OF_TURN_TOKEN[|]?>"
)
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "A city."}},
            "required": ["city"],
        },
    },
}
_USER = {"role": "user", "content": "What is the weather?"}
_HISTORY: Sequence[Mapping[str, Any]] = (
    _USER,
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "call_0123456789abcdef01234567",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_0123456789abcdef01234567", "name": "get_weather", "content": "sunny"},
)


def tokenizer_for(template: str) -> Any:
    """A tokenizer with the tokens that a template spells out, and `<s>`, `</s>` as its own."""
    special = sorted(set(_TOKENS.findall(template)) - {"<s>", "</s>"})
    raw = byte_level_tokenizer(["<s>", "</s>", *special], [])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


def row_of(template: str) -> dict[str, str]:
    """The cells of a template's row, by column."""
    tokenizer = tokenizer_for(template)
    markers = reasoning_markers_of(tokenizer)
    tool_format = tool_format_of(tokenizer)
    style = tool_format.dialect.id_style if tool_format else "openai"
    renderer = ChatRenderer(tokenizer, model_name="it", id_style=style)
    ends = find_turn_ends(tokenizer).ends
    written = own_call(tokenizer)
    return {
        "plain": _cell(lambda: renderer.render([_USER]), ["What is the weather?"]),
        "system": _cell(lambda: renderer.render([{"role": "system", "content": "Be brief."}, _USER]), ["Be brief."]),
        "tools": _cell(lambda: renderer.render([_USER], tools=[_TOOL]), ["get_weather"]),
        "tool history": _cell(
            lambda: renderer.render(_HISTORY, tools=[_TOOL]),
            ["get_weather", "Paris", "sunny"],
            without=["{'city': 'Paris'", '\\"city\\": \\"Paris'],
        ),
        "turn end": " ".join(dict.fromkeys(end.token for end in ends)) or "none",
        "reasoning": markers.name if markers else "none",
        "tool format": tool_format.name if tool_format else "none",
        "own call": "none"
        if written is None or tool_format is None
        else ("right" if reads_own_call(tool_format, written) else "WRONG"),
    }


def _cell(render: Callable[[], str], shown: Sequence[str], without: Sequence[str] = ()) -> str:
    try:
        text = render()
    except RequestError as error:
        return f"refused: {error.param}" if error.code == "unsupported" else "refused by the template"
    is_right = all(each in text for each in shown) and not any(each in text for each in without)
    return "right" if is_right else "WRONG"


def markdown(rows: Mapping[str, Mapping[str, str]]) -> str:
    """The rows as a table, by the names of their templates."""
    lines = [f"| template | {' | '.join(COLUMNS)} |", f"|---{'|---' * len(COLUMNS)}|"]
    lines += [f"| {name} | {' | '.join(_escaped(row[column]) for column in COLUMNS)} |" for name, row in rows.items()]
    return "\n".join(lines)


def _escaped(cell: str) -> str:
    """Tokens as code, their bars as Markdown wants them in a table."""
    shown = cell.replace("|", "\\|")
    return f"`{shown}`" if any(sign in cell for sign in "<[") else shown
