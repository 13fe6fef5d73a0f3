"""Amazon Bedrock's batch inference: ``{"recordId": ..., "modelInput": {...}}`` (docs.aws.amazon.com, "Format and upload
your batch inference data").

What `modelInput` is depends on the model: Anthropic's parameters, those of the Converse API, Llama's, or OpenAI's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from mlxq.requests import checks
from mlxq.requests.services import anthropic
from mlxq.requests.services.mapping import (
    Drops,
    Meaning,
    function_tool,
    mapped,
    named_function,
    no_counterpart,
    nothing,
    objects,
    text,
    tool_call,
    under_system,
)

_CONVERSE = frozenset({"inferenceConfig", "toolConfig", "schemaVersion", "additionalModelRequestFields"})
_LLAMA = {"max_gen_len": "max_tokens"}


def body_of(model_input: Mapping[str, Any], path: str, drops: Drops) -> dict[str, Any]:
    """The body that asks for the same.

    Raises:
        RequestError: a field has no counterpart, or not the shape that it should have.
    """
    if "anthropic_version" in model_input:
        return anthropic.body_of(model_input, path, drops)
    if not _CONVERSE.isdisjoint(model_input) or "system" in model_input or _has_bare_blocks(model_input):
        return _converse(model_input, path, drops)
    return {_LLAMA.get(name, name): value for name, value in model_input.items()}


def _has_bare_blocks(model_input: Mapping[str, Any]) -> bool:
    """Whether messages have blocks that say by a name what they are, and not by a type."""
    messages = model_input.get("messages")
    if type(messages) is not list:
        return False
    contents = [message.get("content") for message in messages if type(message) is dict]
    blocks = [block for content in contents if type(content) is list for block in content]
    return any(type(block) is dict and "type" not in block for block in blocks)


def _converse(model_input: Mapping[str, Any], path: str, drops: Drops) -> dict[str, Any]:
    inference: dict[str, Meaning] = {
        "maxTokens": "max_tokens",
        "temperature": "temperature",
        "topP": "top_p",
        "topK": "top_k",
        "stopSequences": "stop",
    }
    tools: dict[str, Meaning] = {
        "tools": _tools,
        "toolChoice": lambda value, place: _tool_choice(checks.an_object(value, place), place),
    }
    meanings: dict[str, Meaning] = {
        "messages": _messages,
        "system": lambda value, place: {"system": _texts(value, place)},
        "inferenceConfig": lambda value, place: mapped(checks.an_object(value, place), inference, place, drops),
        "toolConfig": lambda value, place: mapped(checks.an_object(value, place), tools, place, drops),
        "modelId": "model",
        "requestMetadata": "metadata",
        "schemaVersion": nothing,
    }
    return under_system(mapped(model_input, meanings, path, drops))


def _texts(value: Any, path: str) -> str:
    blocks = objects(value, path)
    for index, block in enumerate(blocks):
        for name in block:
            if name not in ("text", "cachePoint"):
                raise no_counterpart(f"{path}[{index}].{name}")
    return "\n\n".join(text(block["text"], f"{path}.text") for block in blocks if "text" in block)


def _messages(value: Any, path: str) -> dict[str, Any]:
    messages = [
        translated
        for index, message in enumerate(objects(value, path))
        for translated in _message(message, f"{path}[{index}]")
    ]
    return {"messages": messages}


def _message(message: Mapping[str, Any], path: str) -> Iterator[dict[str, Any]]:
    """One message of theirs is several of ours where it has the results of calls."""
    ours: dict[str, Any] = {"role": message.get("role")}
    texts: list[str] = []
    for index, block in enumerate(objects(message.get("content"), f"{path}.content")):
        for name, value in block.items():
            place = f"{path}.content[{index}].{name}"
            if name == "text":
                texts.append(text(value, place))
            elif name == "toolUse":
                use = checks.an_object(value, place)
                call = tool_call(use.get("toolUseId"), use.get("name"), use.get("input"))
                ours.setdefault("tool_calls", []).append(call)
            elif name == "toolResult":
                yield _tool_result(checks.an_object(value, place), place)
            elif name != "cachePoint":
                raise no_counterpart(place)
    if texts:
        ours["content"] = "\n\n".join(texts) if len(texts) > 1 else texts[0]
    if len(ours) > 1:
        yield ours


def _tool_result(result: Mapping[str, Any], path: str) -> dict[str, Any]:
    if result.get("status") == "error":
        raise no_counterpart(f"{path}.status")
    texts = []
    for index, block in enumerate(objects(result.get("content"), f"{path}.content")):
        for name, value in block.items():
            if name not in ("text", "json"):
                raise no_counterpart(f"{path}.content[{index}].{name}")
            texts.append(value if isinstance(value, str) else msgspec.json.encode(value).decode())
    return {"role": "tool", "tool_call_id": result.get("toolUseId"), "content": "\n\n".join(texts)}


def _tools(value: Any, path: str) -> dict[str, Any]:
    tools = []
    for index, tool in enumerate(objects(value, path)):
        for name in tool:
            if name not in ("toolSpec", "cachePoint"):
                raise no_counterpart(f"{path}[{index}].{name}")
        if "toolSpec" in tool:
            spec = checks.an_object(tool["toolSpec"], f"{path}[{index}].toolSpec")
            schema = checks.an_object(spec.get("inputSchema") or {}, f"{path}[{index}].toolSpec.inputSchema")
            tools.append(function_tool(spec.get("name"), spec.get("description"), schema.get("json")))
    return {"tools": tools}


def _tool_choice(choice: Mapping[str, Any], path: str) -> dict[str, Any]:
    if "tool" in choice:
        return named_function(checks.an_object(choice["tool"], f"{path}.tool").get("name"))
    if "any" in choice:
        return {"tool_choice": "required"}
    if "auto" in choice:
        return {"tool_choice": "auto"}
    raise checks.out_of_range(path, "auto, any or tool", dict(choice))
