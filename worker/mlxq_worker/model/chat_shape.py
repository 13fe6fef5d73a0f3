"""The shapes in which chat templates want messages, and the marked conversation that shows what a template leaves out.

Templates are written against one shape each: arguments as objects or as JSON text, contents as text or as parts, ids of
calls of one length. Pure functions over messages; renders nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

Message = Mapping[str, Any]

_BASE62 = string.digits + string.ascii_letters
_NINE = re.compile("[A-Za-z0-9]{9}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How messages are given to a template.

    Args:
        text_arguments: calls have their arguments as JSON text, not as objects.
        parts: contents are lists of parts, not texts.
        no_content: a message that only calls has no content, not an empty one.
        listed_tools: without tools there is an empty list of them, not none.
        short_ids: ids of calls are nine letters and digits.
        system_tools: tools stand in the system message too, which is added if there is none.
        full_tools: a tool without parameters has some, an object of none.
    """

    text_arguments: bool = False
    parts: bool = False
    no_content: bool = False
    listed_tools: bool = False
    short_ids: bool = False
    system_tools: bool = False
    full_tools: bool = False


USUAL = Shape()
SHAPES = (
    USUAL,
    Shape(text_arguments=True),
    Shape(short_ids=True),
    Shape(short_ids=True, text_arguments=True),
    Shape(no_content=True),
    Shape(no_content=True, text_arguments=True),
    Shape(parts=True),
    Shape(parts=True, text_arguments=True),
    Shape(listed_tools=True),
    Shape(listed_tools=True, text_arguments=True),
    Shape(system_tools=True),
    Shape(system_tools=True, text_arguments=True),
    Shape(full_tools=True),
    Shape(full_tools=True, text_arguments=True),
)
"""In the order in which they are tried."""


def shaped(
    messages: Sequence[Message], shape: Shape, tools: Sequence[Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """The messages as templates of this shape want them."""
    if shape.system_tools and tools:
        messages = _with_system_tools(messages, tools)
    return [_shaped(message, shape) for message in messages]


def shaped_tools(tools: Sequence[dict[str, Any]], shape: Shape) -> list[dict[str, Any]]:
    """The tools as templates of this shape want them."""
    return [_full(tool) for tool in tools] if shape.full_tools else list(tools)


def _full(tool: dict[str, Any]) -> dict[str, Any]:
    parameters = tool["function"].get("parameters") or {"type": "object", "properties": {}}
    return {**tool, "function": {**tool["function"], "parameters": parameters}}


def _with_system_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Phi-4-mini reads its tools there, as JSON text; others write them with a system message only."""
    is_told = bool(messages) and messages[0].get("role") == "system"
    first = messages[0] if is_told else {"role": "system", "content": ""}
    listed = json.dumps([tool["function"] for tool in tools], ensure_ascii=False)
    return [{**first, "tools": listed}, *messages[1 if is_told else 0 :]]


def _shaped(message: Message, shape: Shape) -> dict[str, Any]:
    shown = dict(message)
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        shown["tool_calls"] = [_shaped_call(call, shape) for call in calls]
        if shape.no_content and not shown.get("content"):
            shown.pop("content", None)
    if shape.short_ids and isinstance(message.get("tool_call_id"), str):
        shown["tool_call_id"] = short_id(message["tool_call_id"])
    if shape.parts and isinstance(shown.get("content"), str):
        shown["content"] = [{"type": "text", "text": shown["content"]}]
    return shown


def _shaped_call(call: Any, shape: Shape) -> Any:
    if not isinstance(call, dict):
        return call
    shown = dict(call)
    if shape.short_ids and isinstance(call.get("id"), str):
        shown["id"] = short_id(call["id"])
    function = call.get("function")
    if isinstance(function, dict) and "arguments" in function:
        convert = _as_text if shape.text_arguments else _as_object
        shown["function"] = {**function, "arguments": convert(function["arguments"])}
    return shown


def _as_object(arguments: Any) -> Any:
    """OpenAI sends JSON in a string; most templates write it out as JSON, and a string would be quoted a second time.
    What is no JSON object stays as it is."""
    if not isinstance(arguments, str):
        return arguments
    try:
        value = json.loads(arguments)
    except ValueError:
        return arguments
    return value if isinstance(value, dict) else arguments


def _as_text(arguments: Any) -> Any:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def short_id(call_id: str) -> str:
    """Nine letters and digits that follow from an id; the id itself if it is such."""
    if _NINE.fullmatch(call_id):
        return call_id
    number = int.from_bytes(hashlib.sha256(call_id.encode(errors="replace")).digest()[:8], "big")
    return "".join(_BASE62[number // 62**place % 62] for place in range(9))


def with_kimi_ids(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages with Kimi's ids of calls, ``functions.NAME:INDEX``, the index counted over the conversation."""
    places = count()
    new_ids: dict[str, str] = {}
    renamed: list[dict[str, Any]] = []
    for message in messages:
        shown = dict(message)
        if isinstance(calls := message.get("tool_calls"), list):
            shown["tool_calls"] = [_with_kimi_id(call, next(places), new_ids) for call in calls]
        if isinstance(call_id := message.get("tool_call_id"), str):
            shown["tool_call_id"] = new_ids.get(call_id, call_id)
        renamed.append(shown)
    return renamed


def _with_kimi_id(call: Any, place: int, new_ids: dict[str, str]) -> Any:
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        return call
    new_id = f"functions.{call['function'].get('name')}:{place}"
    if isinstance(call.get("id"), str):
        new_ids[call["id"]] = new_id
    return {**call, "id": new_id}


@dataclass(frozen=True, slots=True)
class Mark:
    """A text that stands for what `param` says; a template that leaves it out has dropped that."""

    param: str
    text: str


_MARK = re.compile(r"mlxq(?:text|name|value)[0-9x]+end")
"""Found in one pass: a conversation may have as many as there is room for."""


@dataclass(frozen=True, slots=True)
class MarkedChat:
    """A conversation of the same form, in which every part is a text that stands nowhere else."""

    messages: tuple[dict[str, Any], ...]
    marks: tuple[Mark, ...]

    @classmethod
    def of(cls, messages: Sequence[Message]) -> MarkedChat:
        marked = [_Marked.of(message, index) for index, message in enumerate(messages)]
        return cls(tuple(each.message for each in marked), tuple(mark for each in marked for mark in each.marks))

    def dropped_from(self, text: str) -> list[str]:
        """The params of what a rendering of it lacks."""
        shown = set(_MARK.findall(text.lower()))  # a template may write all in lower case
        return [mark.param for mark in self.marks if mark.text.lower() not in shown]


@dataclass(frozen=True, slots=True)
class _Marked:
    message: dict[str, Any]
    marks: tuple[Mark, ...]

    @classmethod
    def of(cls, message: Message, index: int) -> _Marked:
        shown, marks = dict(message), []
        if isinstance(content := message.get("content"), str) and content.strip():
            mark = Mark(f"messages[{index}].content", f"mlxqText{index}End")
            shown["content"] = mark.text
            marks.append(mark)
        calls = message.get("tool_calls")
        if isinstance(calls, list):
            marked = [
                _marked_call(call, f"messages[{index}].tool_calls", f"{index}x{place}")
                for place, call in enumerate(calls)
            ]
            shown["tool_calls"] = [call for call, _ in marked]
            params = {mark.text: mark for _, found in marked for mark in found}
            marks += params.values()
        return cls(shown, tuple(marks))


def _marked_call(call: Any, param: str, place: str) -> tuple[Any, tuple[Mark, ...]]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call, ()
    name, value = f"mlxqName{place}End", f"mlxqValue{place}End"
    marked = {**call, "function": {**function, "name": name, "arguments": json.dumps({MARKED_KEY: value})}}
    if isinstance(call_id := call.get("id"), str) and function.get("name"):
        marked["id"] = call_id.replace(
            f"functions.{function['name']}:", f"functions.{name}:"
        )  # where Kimi's names stand
    return marked, (Mark(param, name), Mark(param, value))


def marked_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The tools under names that stand nowhere else."""
    named = zip(tools, marked_names(tools), strict=True)
    return [{**tool, "function": {**tool["function"], "name": name}} for tool, name in named]


def marked_names(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of `marked_tools`."""
    return [f"mlxqTool{index}End" for index in range(len(tools))]


MARKED_KEY = "mlxqKey"
"""The one parameter of every marked call."""


def arguments_are_misquoted(text: str) -> bool:
    """Whether a rendering of a marked conversation has Python's spelling of arguments, or JSON quoted twice."""
    return f"{{'{MARKED_KEY}'" in text or f'\\"{MARKED_KEY}' in text


def form_of(messages: Sequence[Message]) -> tuple[Any, ...]:
    """What two conversations have in common of which a template shows the same parts."""
    return tuple(
        (message.get("role"), *(sorted(_kinds(message))), len(message.get("tool_calls") or ())) for message in messages
    )


def _kinds(message: Message) -> Iterator[str]:
    for name, value in message.items():
        if name != "role" and value not in (None, "", []):
            yield name
