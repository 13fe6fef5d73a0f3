"""Anthropic's message batches: ``{"custom_id": ..., "params": {...}}`` (docs.claude.com, "Batch processing").

Their parameters are those of its Messages API, which Amazon Bedrock takes as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlxq.requests import checks
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
    tool_call,
    word,
)

_TEXT_FIELDS = frozenset({"type", "text", "cache_control", "citations"})
"""What a block of text may have: beside its text the way it is cached, and sources that it names."""

_CHOICES = {"auto": "auto", "any": "required", "none": "none", "tool": "named"}


def body_of(params: Mapping[str, Any], path: str, drops: Drops) -> dict[str, Any]:
    """The body that asks for the same.

    Raises:
        RequestError: a field has no counterpart, or not the shape that it should have.
    """
    meanings: dict[str, Meaning] = {
        **{name: name for name in ("model", "max_tokens", "temperature", "top_p", "top_k", "metadata", "stream")},
        "stop_sequences": "stop",
        "system": lambda value, place: {"system": _system(value, place)},
        "messages": _messages,
        "tools": _tools,
        "tool_choice": lambda value, place: _tool_choice(checks.an_object(value, place), place),
        "thinking": lambda value, place: _thinking(checks.an_object(value, place), place),
        "service_tier": nothing,
        "anthropic_version": nothing,
    }
    body = mapped(params, meanings, path, drops)
    system = body.pop("system", None)
    if system is not None and "messages" in body:
        body["messages"] = [{"role": "system", "content": system}, *body["messages"]]
    if body.get("messages") and body["messages"][-1].get("role") == "assistant":
        body |= {"continue_final_message": True, "add_generation_prompt": False}  # there an answer goes on from it
    return body


def _system(value: Any, path: str) -> str:
    if type(value) is str:
        return value
    return "\n\n".join(_text_of(block, f"{path}[{index}]") for index, block in enumerate(objects(value, path)))


def _messages(value: Any, path: str) -> dict[str, Any]:
    messages = [
        translated
        for index, message in enumerate(objects(value, path))
        for translated in _message(message, f"{path}[{index}]")
    ]
    return {"messages": messages}


def _message(message: Mapping[str, Any], path: str) -> Iterator[dict[str, Any]]:
    """One message of theirs is several of ours where it has the results of calls."""
    for name in message:
        if name not in ("role", "content"):
            raise no_counterpart(f"{path}.{name}")
    role, content = message.get("role"), message.get("content")
    if type(content) is not list:
        yield {"role": role, "content": content}
        return
    ours: dict[str, Any] = {"role": role}
    texts: list[str] = []
    for index, block in enumerate(objects(content, f"{path}.content")):
        place = f"{path}.content[{index}]"
        if block.get("type") == "tool_result":
            yield _tool_result(block, place)
        elif block.get("type") == "tool_use":
            ours.setdefault("tool_calls", []).append(tool_call(block.get("id"), block.get("name"), block.get("input")))
        elif block.get("type") == "thinking":
            ours["reasoning_content"] = ours.get("reasoning_content", "") + text(block.get("thinking"), place)
        else:
            texts.append(_text_of(block, place))
    if texts:
        ours["content"] = "\n\n".join(texts) if len(texts) > 1 else texts[0]
    if len(ours) > 1:
        yield ours


def _tool_result(block: Mapping[str, Any], path: str) -> dict[str, Any]:
    if block.get("is_error"):
        raise no_counterpart(f"{path}.is_error")
    content = block.get("content") or ""
    return {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": _system(content, f"{path}.content")}


def _text_of(block: Mapping[str, Any], path: str) -> str:
    if block.get("type") != "text":
        raise no_counterpart(f"{path} of the type {block.get('type')}")
    refuse_others(block, _TEXT_FIELDS, path)
    return text(block.get("text"), f"{path}.text")


def _tools(value: Any, path: str) -> dict[str, Any]:
    tools = []
    for index, tool in enumerate(objects(value, path)):
        if tool.get("type", "custom") != "custom":
            raise no_counterpart(f"{path}[{index}] of the type {tool['type']}")
        for name in tool:
            if name not in ("type", "name", "description", "input_schema", "cache_control"):
                raise no_counterpart(f"{path}[{index}].{name}")
        tools.append(function_tool(tool.get("name"), tool.get("description"), tool.get("input_schema")))
    return {"tools": tools}


def _tool_choice(choice: Mapping[str, Any], path: str) -> dict[str, Any]:
    kind = word(choice.get("type"), _CHOICES, f"{path}.type")
    ours = named_function(choice.get("name")) if kind == "named" else {"tool_choice": kind}
    return {**ours, "parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") else ours


def _thinking(thinking: Mapping[str, Any], path: str) -> dict[str, Any]:
    if thinking.get("type") == "disabled":
        return {"chat_template_kwargs": {"enable_thinking": False}}
    if thinking.get("type") != "enabled":
        raise no_counterpart(f"{path} of the type {thinking.get('type')}")
    return {"thinking_token_budget": thinking.get("budget_tokens")}
