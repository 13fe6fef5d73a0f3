"""Gemini's and Vertex AI's batches: ``{"key": ..., "request": {...}}`` (ai.google.dev, "Batch API").

A request is that of `generateContent`; its names may be in camel case or with underscores, as in Google's own examples.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mlxq.requests import checks
from mlxq.requests.services.mapping import (
    Drops,
    Meaning,
    function_tool,
    mapped,
    named_function,
    no_counterpart,
    objects,
    text,
    tool_call,
    under_system,
    word,
)

_CONFIG: dict[str, str] = {
    "temperature": "temperature",
    "topP": "top_p",
    "topK": "top_k",
    "maxOutputTokens": "max_tokens",
    "stopSequences": "stop",
    "candidateCount": "n",
    "seed": "seed",
    "presencePenalty": "presence_penalty",
    "frequencyPenalty": "frequency_penalty",
    "responseLogprobs": "logprobs",
    "logprobs": "top_logprobs",
}
_MIMES = {"text/plain": "text", "application/json": "json"}
_MODES = {"AUTO": "auto", "ANY": "required", "NONE": "none"}
_ROLES = {"user": "user", "model": "assistant", "function": "user"}


def body_of(request: Mapping[str, Any], path: str, drops: Drops) -> dict[str, Any]:
    """The body that asks for the same.

    Raises:
        RequestError: a field has no counterpart, or not the shape that it should have.
    """
    meanings: dict[str, Meaning] = {
        "model": "model",
        "labels": "metadata",
        "contents": _contents,
        "systemInstruction": lambda value, place: {"system": _system(value, place)},
        "generationConfig": lambda value, place: _config(checks.an_object(value, place), place, drops),
        "tools": lambda value, place: _tools(value, place, drops),
        "toolConfig": lambda value, place: _tool_config(checks.an_object(value, place), place, drops),
    }
    return under_system(mapped(_camel(request), meanings, path, drops))


def _camel(obj: Mapping[str, Any]) -> dict[str, Any]:
    """The same object with names in camel case; those inside it stay as they are."""
    return {_camel_name(name): value for name, value in obj.items()}


def _camel_name(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)


def _system(value: Any, path: str) -> str:
    if type(value) is str:
        return value
    parts = objects(checks.an_object(value, path).get("parts"), f"{path}.parts")
    return "\n\n".join(text(part.get("text"), f"{path}.parts.text") for part in parts)


def _contents(value: Any, path: str) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    pending: list[tuple[str, str]] = []  # names and ids of calls that have no result yet
    for index, content in enumerate(objects(value, path)):
        messages += _content(content, f"{path}[{index}]", pending)
    return {"messages": messages}


def _content(content: Mapping[str, Any], path: str, pending: list[tuple[str, str]]) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    ours: dict[str, Any] = {"role": word(content.get("role", "user"), _ROLES, f"{path}.role")}
    texts: list[str] = []
    for index, part in enumerate(objects(content.get("parts"), f"{path}.parts")):
        for name, value in _camel(part).items():
            place = f"{path}.parts[{index}].{name}"
            if name == "text":
                texts.append(text(value, place))
            elif name == "functionCall":
                call = checks.an_object(value, place)
                call_id = call.get("id") or f"{path}.parts[{index}]"
                pending.append((str(call.get("name")), call_id))
                ours.setdefault("tool_calls", []).append(tool_call(call_id, call.get("name"), call.get("args")))
            elif name == "functionResponse":
                results.append(_result(checks.an_object(value, place), pending))
            else:
                raise no_counterpart(place)
    if texts:
        ours["content"] = "".join(texts)
    return [*results, ours] if len(ours) > 1 else results


def _result(response: Mapping[str, Any], pending: list[tuple[str, str]]) -> dict[str, Any]:
    """What a function returned: of its first call that has no result yet, unless it says of which."""
    name = str(response.get("name"))
    found = next((call for call in pending if call[0] == name), (name, name))
    if found in pending:
        pending.remove(found)
    content = json.dumps(response.get("response"), ensure_ascii=False)
    return {"role": "tool", "tool_call_id": response.get("id") or found[1], "content": content}


def _config(config: Mapping[str, Any], path: str, drops: Drops) -> dict[str, Any]:
    thinking: dict[str, Meaning] = {"thinkingBudget": "thinking_token_budget"}
    meanings: dict[str, Meaning] = {
        **_CONFIG,
        "thinkingConfig": lambda value, place: mapped(_camel(checks.an_object(value, place)), thinking, place, drops),
        "responseMimeType": "mime",
        "responseSchema": lambda value, place: {"schema": _schema(checks.an_object(value, place))},
        "responseJsonSchema": "schema",
    }
    body = mapped(_camel(config), meanings, path, drops)
    mime, schema = body.pop("mime", "text/plain"), body.pop("schema", None)
    kind = word(mime, _MIMES, f"{path}.responseMimeType")
    if schema is not None:
        json_schema = {"name": "response", "schema": schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": json_schema}
    elif kind == "json":
        body["response_format"] = {"type": "json_object"}
    return body


def _schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """An OpenAPI schema as Gemini takes it, as JSON schema: types in small letters, and null as a type."""
    ours: dict[str, Any] = {}
    for name, value in _camel(schema).items():
        if name == "type" and type(value) is str:
            ours["type"] = value.lower()
        elif name == "properties" and type(value) is dict:
            order = _camel(schema).get("propertyOrdering")
            ours[name] = {key: _inner(value[key]) for key in _ordered(value, order)}
        elif name in ("items", "additionalProperties"):
            ours[name] = _inner(value)
        elif name == "anyOf" and type(value) is list:
            ours[name] = [_inner(item) for item in value]
        elif name not in ("propertyOrdering", "nullable"):
            ours[name] = value
    if schema.get("nullable") and "type" in ours:
        ours["type"] = [ours["type"], "null"]
    return ours


def _ordered(properties: Mapping[str, Any], order: Any) -> list[str]:
    """The names, first those that are told the order of."""
    first = [name for name in order if type(name) is str and name in properties] if type(order) is list else []
    return [*first, *(name for name in properties if name not in first)]


def _inner(value: Any) -> Any:
    return _schema(value) if type(value) is dict else value


def _tools(value: Any, path: str, drops: Drops) -> dict[str, Any]:
    tools = []
    for index, tool in enumerate(objects(value, path)):
        declared: dict[str, Meaning] = {"functionDeclarations": "functions"}
        place = f"{path}[{index}]"
        functions = mapped(_camel(tool), declared, place, drops).get("functions", [])
        for function in map(_camel, objects(functions, f"{place}.functionDeclarations")):
            schema = function.get("parametersJsonSchema")
            if schema is None and type(function.get("parameters")) is dict:
                schema = _schema(function["parameters"])
            tools.append(function_tool(function.get("name"), function.get("description"), schema))
    return {"tools": tools} if tools else {}


def _tool_config(config: Mapping[str, Any], path: str, drops: Drops) -> dict[str, Any]:
    inner: dict[str, Meaning] = {
        "functionCallingConfig": lambda value, place: _calling(_camel(checks.an_object(value, place)), place)
    }
    return mapped(_camel(config), inner, path, drops)


def _calling(config: Mapping[str, Any], path: str) -> dict[str, Any]:
    names = config.get("allowedFunctionNames") or []
    mode = word(config.get("mode", "AUTO"), _MODES, f"{path}.mode")
    if type(names) is list and len(names) == 1 and mode == "required":
        return named_function(names[0])
    if names:
        raise no_counterpart(f"{path}.allowedFunctionNames")
    return {"tool_choice": mode}
