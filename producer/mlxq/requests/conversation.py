"""The fields of a chat: its messages, the tools that the model may call, and which of them it must call.

Messages and tools keep the wire's shape, since chat templates are written against it. Knows no other fields, and
nothing of the templates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mlxq.contract import ToolChoice, ToolMode
from mlxq.errors import RequestError
from mlxq.requests import checks
from mlxq.requests.checks import Check
from mlxq.requests.field import honoured, read_object, refused, table

_ROLES = {role: role for role in ("system", "user", "assistant", "tool")} | {"developer": "system"}
_ROLE_OF = {
    "tool_calls": "assistant",
    "reasoning_content": "assistant",
    "reasoning": "assistant",
    "tool_call_id": "tool",
}
"""Fields of a message that go with one role only."""
_TOOL_MODES: dict[str, ToolMode] = {"none": "none", "auto": "auto", "required": "required"}
_TOOL_NAME = re.compile(r"[\w.:/-]{1,128}")
"""What stands as it is both in JSON and between the markers of calls. OpenAI's names are letters, digits, _ and -."""
TOOL_NAMES = "1 to 128 letters, digits and characters of _-.:/"
_TOOL_CHOICES = 'one of none, auto, required, or {"type": "function", "function": {"name": "..."}}'


def _message(value: Any, param: str) -> dict[str, Any]:
    """One message as chat templates take it: content is one string, there even beside tool calls."""
    message = read_object(MESSAGE_FIELDS, value, param)
    _check_message(message, param)
    if "reasoning" in message:
        message["reasoning_content"] = message.pop("reasoning")
    return {"content": "", **message}


def _check_message(message: Mapping[str, Any], param: str) -> None:
    """What the fields of one message say about each other."""
    if "role" not in message:
        raise checks.missing(f"{param}.role", f"{param}.role is missing")
    role = message["role"]
    for name, its_role in _ROLE_OF.items():
        if name in message and role != its_role:
            text = f"{param}.{name} only goes with the role {its_role}, not with {role}"
            raise RequestError(text, param=f"{param}.{name}", code="invalid_value")
    if len({message[name] for name in ("reasoning", "reasoning_content") if name in message}) > 1:
        text = f"{param}.reasoning and {param}.reasoning_content differ; give one of them"
        raise RequestError(text, param=f"{param}.reasoning")
    if "content" not in message and "tool_calls" not in message:
        raise checks.missing(f"{param}.content", f"{param}.content is missing")


def _content(value: Any, param: str) -> str:
    if type(value) is str:
        return value
    if type(value) is not list:
        raise checks.wrong_type(param, "a string or a list of text parts", value)
    # A line each, as vLLM joins them.
    return "\n".join(_text_parts(value, param))


def _text_part(value: Any, param: str) -> str:
    kind = checks.an_object(value, param).get("type")
    if kind != "text":
        message = f'{param} is of type {checks.show(kind)}; only parts of type "text" can be read'
        raise RequestError(message, param=param, code="unsupported_field")
    if value.get("text") is None:
        raise checks.missing(f"{param}.text", f"{param}.text is missing")
    return checks.string(value["text"], f"{param}.text")


def _tool_call(value: Any, param: str) -> dict[str, Any]:
    call = checks.an_object(value, param)
    arguments = _function(call, param).get("arguments")
    if type(arguments) not in (str, dict):
        raise checks.wrong_type(f"{param}.function.arguments", "a string of JSON or an object", arguments)
    return {**call, "type": "function"}


def _tool(value: Any, param: str) -> dict[str, Any]:
    """One tool, kept as it was written, its type filled in: chat templates print it, so no field is unknown."""
    tool = checks.an_object(value, param)
    function = _function(tool, param)
    for name, field in FUNCTION_FIELDS.items():
        if function.get(name) is not None:
            field.read(function[name], f"{param}.function.{name}")
    return {**tool, "type": "function"}


def _tool_name(value: Any, param: str) -> str:
    name = checks.filled_string(value, param)
    if not _TOOL_NAME.fullmatch(name):
        raise checks.out_of_range(param, TOOL_NAMES, name)
    return name


def _function(holder: Mapping[str, Any], param: str) -> dict[str, Any]:
    """The ``function`` of a tool, a call or a choice, which has a name. Their type is the only one, as in vLLM."""
    if holder.get("type") not in (None, "function"):
        raise checks.out_of_range(f"{param}.type", '"function"', holder.get("type"))
    function = checks.an_object(holder.get("function"), f"{param}.function")
    checks.filled_string(function.get("name"), f"{param}.function.name")
    return function


def _tool_choice(value: Any, param: str) -> ToolChoice:
    if type(value) is dict:
        named = read_object(TOOL_CHOICE_FIELDS, value, param)
        return ToolChoice(mode="required", name=_function(named, param)["name"])
    if type(value) is not str:
        raise checks.wrong_type(param, _TOOL_CHOICES, value)
    if value not in _TOOL_MODES:
        raise checks.out_of_range(param, _TOOL_CHOICES, value)
    return ToolChoice(mode=_TOOL_MODES[value])


_text_parts = checks.list_of(Check('a part of type "text"', _text_part), "text parts", at_least=1)
_calls = checks.list_of(Check("a tool call", _tool_call), "tool calls", at_least=1)
# A list, since templates may ask whether it is one.
_tool_calls = Check(_calls.expected, lambda value, param: list(_calls(value, param)))

messages = checks.list_of(Check("a message", _message), "messages", at_least=1)
tools = checks.list_of(Check("a tool", _tool), "tools")
tool_choice = Check(_TOOL_CHOICES, _tool_choice)

PART_FIELDS = table(
    honoured("type", checks.string, "text"),
    honoured("text", checks.string, "the text"),
)

MESSAGE_FIELDS = table(
    honoured("role", checks.one_of(_ROLES), "who speaks; developer is read as system"),
    honoured(
        "content",
        Check("a string or a non-empty list of text parts", _content),
        "what is said; parts are joined, a line each",
        inside=PART_FIELDS,
    ),
    honoured("name", checks.string, "who speaks, for templates that print it"),
    honoured("tool_calls", _tool_calls, "the calls that the assistant made"),
    honoured("tool_call_id", checks.string, "the call that a tool message answers"),
    honoured("reasoning_content", checks.string, "the assistant's reasoning, for templates that print it"),
    honoured("reasoning", checks.string, "the same as reasoning_content"),
    refused("refusal", doc="the assistant's refusal"),
    refused("annotations", [], doc="citations of web searches"),
    refused("audio", doc="an earlier audio answer"),
    refused("function_call", doc="replaced by tool_calls"),
)

FUNCTION_FIELDS = table(
    honoured("name", Check(TOOL_NAMES, _tool_name), "what calls name it"),
    honoured("description", checks.string, "what the function does"),
    honoured("parameters", checks.an_object, "JSON schema of the arguments"),
    honoured("strict", checks.boolean, "hold the arguments to the schema, also where a call is the model's choice"),
)

TOOL_CHOICE_FIELDS = table(
    honoured("type", checks.one_of({"function": "function"}), "function"),
    honoured(
        "function",
        checks.an_object,
        "the function to call",
        inside=table(honoured("name", checks.filled_string, "the function's name")),
    ),
    refused("allowed_tools", doc="some of the tools; leave the others out of tools"),
)
