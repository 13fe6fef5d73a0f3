"""Lines for OpenAI's Responses API: ``{"custom_id": ..., "url": "/v1/responses", "body": {"input": ...}}``
(platform.openai.com, "Batch API" and "Create a model response").

What its server would have kept (earlier responses, conversations, prompts, its own tools) has no counterpart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxq.contract import CHAT
from mlxq.requests import checks
from mlxq.requests.envelope import parts_of
from mlxq.requests.services.mapping import (
    Drops,
    Meaning,
    function_tool,
    mapped,
    named_function,
    no_counterpart,
    nothing,
    objects,
    refuse_others,
    text,
    under_system,
)

ENDPOINT = "/v1/responses"
_TEXTS = ("input_text", "output_text")
_TEXT_FIELDS = frozenset({"type", "text", "annotations", "logprobs", "prompt_cache_breakpoint"})
"""What a part of a text may have: beside it sources, what the model's other choices were, and how it is cached."""
_ITEM_FIELDS = {
    "message": {"role", "content"},
    "reasoning": {"summary", "content"},
    "function_call": {"call_id", "name", "arguments"},
    "function_call_output": {"call_id", "output", "name"},
}
_ITEM_HINTS = {"type", "id", "status"}
"""What every item may have, beside the fields of its type."""
_TOOL_FIELDS = frozenset({"type", "name", "description", "parameters", "strict"})
_LOGPROBS = "message.output_text.logprobs"


def is_for_responses(line: Mapping[str, Any]) -> bool:
    """Whether a line was written for this API."""
    body = line.get("body")
    return type(body) is dict and "input" in body and parts_of(line.get("url"))[-1:] == ["responses"]


def as_chat(line: Mapping[str, Any], drops: Drops) -> dict[str, Any]:
    """Such a line as one for OpenAI's chats.

    Raises:
        RequestError: a field has no counterpart, or not the shape that it should have.
    """
    return {**line, "url": CHAT, "body": body_of(line["body"], "body", drops)}


def body_of(params: Mapping[str, Any], path: str, drops: Drops) -> dict[str, Any]:
    """The body that asks for the same of a chat. A summary of the reasoning is none of it: the answer has the whole.

    Raises:
        RequestError: a field has no counterpart, or not the shape that it should have.
    """
    same = ("model", "temperature", "top_p", "metadata", "user", "parallel_tool_calls", "stream", "stream_options")
    labels = ("safety_identifier", "prompt_cache_key", "prompt_cache_retention")
    text_meanings: dict[str, Meaning] = {"format": _format, "verbosity": "verbosity"}
    reasoning: dict[str, Meaning] = {"effort": "reasoning_effort", "summary": nothing, "generate_summary": nothing}
    meanings: dict[str, Meaning] = {
        **{name: name for name in (*same, *labels)},
        "input": _input,
        "instructions": lambda value, place: {"system": text(value, place)},
        "max_output_tokens": "max_tokens",
        "text": lambda value, place: mapped(checks.an_object(value, place), text_meanings, place, drops),
        "reasoning": lambda value, place: mapped(checks.an_object(value, place), reasoning, place, drops),
        "tools": _tools,
        "tool_choice": _tool_choice,
        "top_logprobs": lambda value, _place: {"logprobs": True, "top_logprobs": value} if value else {},
        "include": lambda value, place: _include(value, place, drops),
        "truncation": lambda value, place: _truncation(value, place, drops),
        **dict.fromkeys(("store", "background", "service_tier", "prompt_cache_options"), nothing),
    }
    return under_system(mapped(params, meanings, path, drops))


def _input(value: Any, path: str) -> dict[str, Any]:
    if type(value) is str:
        return {"messages": [{"role": "user", "content": value}]}
    if type(value) is not list:
        raise checks.wrong_type(path, "a string or a list of objects", value)
    messages: list[dict[str, Any]] = []
    for index, item in enumerate(objects(value, path)):
        _add(messages, item, f"{path}[{index}]")
    return {"messages": messages}


def _add(messages: list[dict[str, Any]], item: Mapping[str, Any], path: str) -> None:
    """Put an item into the conversation. What the assistant thought, said and called there are items of their own, and
    one message here."""
    kind = item.get("type", "message")
    if type(kind) is not str or kind not in _ITEM_FIELDS:
        raise no_counterpart(f"{path} of the type {kind}")
    refuse_others(item, _ITEM_FIELDS[kind] | _ITEM_HINTS, path)
    if kind == "message":
        message = {"role": item.get("role"), "content": _content(item.get("content"), f"{path}.content")}
        has_thought = bool(messages) and messages[-1].keys() == {"role", "reasoning_content"}
        if has_thought and message["role"] == "assistant":
            messages[-1] |= message
        else:
            messages.append(message)
    elif kind == "reasoning":
        thoughts = [text(part.get("text"), path) for part in objects(item.get("content") or [], f"{path}.content")]
        if thoughts:
            messages.append({"role": "assistant", "reasoning_content": "\n".join(thoughts)})
    elif kind == "function_call":
        if not messages or messages[-1].get("role") != "assistant":
            messages.append({"role": "assistant"})
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        messages[-1].setdefault("tool_calls", []).append(call)
    else:  # the output of a call
        content = _content(item.get("output"), f"{path}.output")
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})


def _content(value: Any, path: str) -> Any:
    """Parts of text as one, a line each, as those of a chat; what is neither is refused as a message's content."""
    if type(value) is not list:
        return value
    return "\n".join(_text_of(part, f"{path}[{index}]") for index, part in enumerate(objects(value, path)))


def _text_of(part: Mapping[str, Any], path: str) -> str:
    if part.get("type") not in _TEXTS:
        raise no_counterpart(f"{path} of the type {part.get('type')}")
    refuse_others(part, _TEXT_FIELDS, path)
    return text(part.get("text"), f"{path}.text")


def _format(value: Any, path: str) -> dict[str, Any]:
    """Theirs has beside its type what stands one level further down in a chat."""
    ours = checks.an_object(value, path)
    if ours.get("type") == "json_schema":
        schema = {name: inner for name, inner in ours.items() if name != "type"}
        ours = {"type": "json_schema", "json_schema": schema}
    return {"response_format": ours}


def _tools(value: Any, path: str) -> dict[str, Any]:
    tools = []
    for index, tool in enumerate(objects(value, path)):
        place = f"{path}[{index}]"
        if tool.get("type") != "function":
            raise no_counterpart(f"{place} of the type {tool.get('type')}")
        refuse_others(tool, _TOOL_FIELDS, place)
        ours = function_tool(tool.get("name"), tool.get("description"), tool.get("parameters"))
        if tool.get("strict") is not None:
            ours["function"]["strict"] = tool["strict"]
        tools.append(ours)
    return {"tools": tools}


def _tool_choice(value: Any, path: str) -> dict[str, Any]:
    if type(value) is not dict:
        return {"tool_choice": value}
    if value.get("type") != "function":
        raise no_counterpart(f"{path} of the type {value.get('type')}")
    return named_function(value.get("name"))


def _include(value: Any, path: str, drops: Drops) -> dict[str, Any]:
    if type(value) is not list:
        raise checks.wrong_type(path, "a list of strings", value)
    for index, word in enumerate(value):
        place = f"{path}[{index}]"
        if word != _LOGPROBS and not drops(place, word):
            raise no_counterpart(f"{place}, {checks.show(word)},")
    return {"logprobs": True} if _LOGPROBS in value else {}


def _truncation(value: Any, path: str, drops: Drops) -> dict[str, Any]:
    if value != "disabled" and not drops(path, value):
        raise no_counterpart(path)
    return {}
