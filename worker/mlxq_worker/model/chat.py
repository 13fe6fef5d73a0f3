"""Turns the messages of a chat into the text that the model's own template makes of them.

Messages arrive as `mlxq.contract.Request` has them: every content is one text. Templates want the arguments of tool
calls as objects, so those are parsed first. Knows nothing of token ids or of sampling.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from mlxq.errors import RequestError
from mlxq_worker.model.tokenizer import Tokenizer

# A template is a program from the model's author, run on the user's messages: it may fail in any of Python's ways.
_TEMPLATE_ERRORS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)

# These steer `apply_chat_template` itself: a request must not bring its own template, or get ids for text.
_RESERVED_KWARGS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "max_length",
        "messages",
        "padding",
        "processor_kwargs",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool,
    continue_final_message: bool = False,
    tools: Sequence[dict[str, Any]] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """The chat as one text, special tokens included: encode it with `add_special_tokens=False`.

    With `continue_final_message` it ends with the last message's content.

    Raises:
        RequestError: the template refuses these messages or leaves out the one to go on with, or a template argument is
            reserved.
    """
    conversation = [_for_template(message) for message in messages]
    kwargs = _checked_kwargs(template_kwargs or {})
    try:
        text = str(
            tokenizer.apply_chat_template(
                conversation,
                tools=list(tools) if tools else None,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                **kwargs,
            )
        )
    except _TEMPLATE_ERRORS as error:
        raise RequestError(
            f"the model's chat template can't render these messages: {str(error) or type(error).__name__}",
            param="messages",
            code="chat_template_error",
        ) from error
    return _cut_behind(text, messages[-1]) if continue_final_message and messages else text


def _cut_behind(text: str, message: Mapping[str, Any]) -> str:
    """The text up to the end of a message's content: as it stands there, or without the white space that templates trim
    (as transformers' `continue_final_message` has it)."""
    content = str(message.get("content") or "")
    trimmed = content.strip()
    place = text.rfind(trimmed) if trimmed else -1
    if place < 0:
        raise RequestError(
            "continue_final_message needs a last message whose content the model's chat template writes",
            param="continue_final_message",
            code="unsupported",
        )
    whole = content.lstrip()
    return text[:place] + (whole if text.startswith(whole, place) else trimmed)


def _checked_kwargs(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in kwargs:
        if name in _RESERVED_KWARGS:
            raise RequestError(
                f"chat_template_kwargs can't set {name}: it takes the template's own variables only",
                param=f"chat_template_kwargs.{name}",
            )
    return kwargs


def _for_template(message: Mapping[str, Any]) -> dict[str, Any]:
    """One message in the shape that templates expect."""
    if isinstance(calls := message.get("tool_calls"), list):
        return {**message, "tool_calls": [_with_parsed_arguments(call) for call in calls]}
    return dict(message)


def _with_parsed_arguments(call: Any) -> Any:
    """A tool call whose arguments are an object: OpenAI sends JSON in a string, templates write it out as JSON,
    and a string would be quoted a second time. What is no JSON object stays as it is."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call
