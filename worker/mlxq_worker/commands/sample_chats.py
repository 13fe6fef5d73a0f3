"""Tries a model's chat template on sample chats, so that a user sees beforehand what would be refused, and why.

Knows no command; renders as requests are rendered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlxq.errors import RequestError
from mlxq_worker.dialects.calls import Call
from mlxq_worker.dialects.tool_format import ToolFormat, own_call, reads_own_call
from mlxq_worker.model.chat import ChatRenderer
from mlxq_worker.model.tokenizer import Tokenizer

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Its name."}},
            "required": ["city"],
        },
    },
}
_USER = {"role": "user", "content": "What is the weather in Paris?"}
_CALL = {
    "id": "call_0123456789abcdef01234567",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
}
_HISTORY: tuple[dict[str, Any], ...] = (
    _USER,
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    {"role": "tool", "tool_call_id": _CALL["id"], "content": "sunny"},
)
_SAMPLES: Mapping[str, tuple[Sequence[dict[str, Any]], bool]] = {
    "plain": ((_USER,), False),
    "system message": (({"role": "system", "content": "Be brief."}, _USER), False),
    "tools": ((_USER,), True),
    "tool history": (_HISTORY, True),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """What came of one sample: ``rendered``, or the refusal; and the text."""

    outcome: str
    text: str | None = None


def try_all(tokenizer: Tokenizer, tool_format: ToolFormat | None, *, model_name: str) -> dict[str, Sample]:
    """The sample chats by name; none if the model has no chat template."""
    if tokenizer.chat_template is None:
        return {"plain": Sample("refused: there is no chat template")}
    style = tool_format.dialect.id_style if tool_format else "openai"
    renderer = ChatRenderer(tokenizer, model_name=model_name, id_style=style)
    return {name: _try(renderer, messages, with_tools) for name, (messages, with_tools) in _SAMPLES.items()}


def _try(renderer: ChatRenderer, messages: Sequence[dict[str, Any]], with_tools: bool) -> Sample:
    try:
        return Sample("rendered", renderer.render(messages, tools=[TOOL] if with_tools else None))
    except RequestError as error:
        return Sample(f"refused: {error.message}")


def about_calls(tokenizer: Tokenizer, tool_format: ToolFormat) -> dict[str, Any]:
    """What is known of a model's tool calls, with an example."""
    written = own_call(tokenizer)
    return {
        "parser": tool_format.name,
        "spoken_by": tool_format.dialect.spoken_by,
        "can_be_forced": tool_format.dialect.forced is not None,
        "reads_the_templates_own": None if written is None else reads_own_call(tool_format, written),
        "example": tool_format.dialect.write([Call("get_weather", {"city": "Paris"})]),
    }
