"""How objects of other services become fields of ours, name by name; one without a counterpart is refused by its name.

Knows no service.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Mapping
from typing import Any

from mlxq.errors import RequestError
from mlxq.requests import checks

Drops = Callable[[str, Any], bool]
"""Whether a field without a counterpart may be left out: given its path and value."""
Meaning = str | Callable[[Any, str], dict[str, Any]]
"""What a field is here: another name, or the fields that its value and path come to."""


def mapped(obj: Mapping[str, Any], meanings: Mapping[str, Meaning], path: str, drops: Drops) -> dict[str, Any]:
    """The fields of an object as ours; nulls say nothing.

    Raises:
        RequestError: one has no counterpart.
    """
    found: dict[str, Any] = {}
    for name, value in obj.items():
        place = f"{path}.{name}" if path else name
        meaning = meanings.get(name)
        if value is None:
            continue
        if meaning is None:
            if not drops(place, value):
                raise no_counterpart(place)
        elif isinstance(meaning, str):
            found[meaning] = value
        else:
            found |= meaning(value, place)
    return found


def no_counterpart(path: str) -> RequestError:
    """The error for what mlxq has nothing for."""
    message = f"{path} has no counterpart in mlxq: leave it out, or add --allow-unknown-params to drop such fields"
    return RequestError(message, param=path, code="unsupported_field")


def refuse_others(obj: Mapping[str, Any], names: Container[str], path: str) -> None:
    """
    Raises:
        RequestError: a field that says something has none of these names.
    """
    for name, value in obj.items():
        if name not in names and value is not None:
            raise no_counterpart(f"{path}.{name}")


def under_system(body: dict[str, Any]) -> dict[str, Any]:
    """The body with its `system`, if it has one, as the first of its messages."""
    system = body.pop("system", None)
    if system is not None:
        body["messages"] = [{"role": "system", "content": system}, *body.get("messages", [])]
    return body


def nothing(_value: Any, _path: str) -> dict[str, Any]:
    """Of a field that says how to serve or to bill, and nothing about the answer."""
    return {}


def objects(value: Any, path: str) -> list[dict[str, Any]]:
    """A list of objects.

    Raises:
        RequestError: it is something else.
    """
    if type(value) is not list:
        raise checks.wrong_type(path, "a list of objects", value)
    return [checks.an_object(item, f"{path}[{index}]") for index, item in enumerate(value)]


def text(value: Any, path: str) -> str:
    """A string.

    Raises:
        RequestError: it is something else.
    """
    if type(value) is not str:
        raise checks.wrong_type(path, "a string", value)
    return value


def word(value: Any, words: Mapping[str, str], path: str) -> str:
    """Our word for one of theirs.

    Raises:
        RequestError: it is none of theirs.
    """
    if type(value) is not str or value not in words:
        raise checks.out_of_range(path, f"one of {', '.join(words)}", value)
    return words[value]


def function_tool(name: Any, description: Any, parameters: Any) -> dict[str, Any]:
    """A tool as OpenAI has it; what isn't given is left out."""
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def tool_call(call_id: Any, name: Any, arguments: Any) -> dict[str, Any]:
    """A call as OpenAI has it, whose arguments are JSON text."""
    function = {"name": name, "arguments": json.dumps(arguments or {}, ensure_ascii=False)}
    return {"id": call_id, "type": "function", "function": function}


def named_function(name: Any) -> dict[str, Any]:
    """The choice of one tool."""
    return {"tool_choice": {"type": "function", "function": {"name": name}}}
