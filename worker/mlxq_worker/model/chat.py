"""Turns the messages of a chat into the text that the model's own template makes of them.

Messages arrive as `mlxq.contract.Request` has them: every content is one text. A template gets them in the shape that
it wants, and what it would leave out is refused by name. Knows nothing of token ids or of sampling.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from mlxq.errors import RequestError
from mlxq_worker.model.chat_shape import (
    SHAPES,
    USUAL,
    MarkedChat,
    Message,
    Shape,
    arguments_are_misquoted,
    form_of,
    marked_names,
    marked_tools,
    shaped,
    shaped_tools,
    with_kimi_ids,
)
from mlxq_worker.model.tokenizer import Tokenizer

# A template is a program from the model's author, run on the user's messages: it may fail in any of Python's ways.
_TEMPLATE_ERRORS = (
    TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
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
_CACHED_FORMS = 512
_THINKING = re.compile(
    r"""(?:message|msg|m)(?:\.thinking\b|\[['"]thinking['"]\]|\.get\(['"]thinking['"])|['"]thinking['"] in"""
)


def template_text(tokenizer: Tokenizer) -> str:
    """All that the tokenizer's chat templates say, as one text."""
    template = tokenizer.chat_template
    if template is None or isinstance(template, str):
        return template or ""
    return "\n".join(template.values())


def template_name(tokenizer: Tokenizer, *, has_tools: bool) -> str | None:
    """Which of several templates renders a chat; `None` if there is one, without a name."""
    template = tokenizer.chat_template
    if template is None or isinstance(template, str):
        return None
    if has_tools and "tool_use" in template:
        return "tool_use"
    return "default" if "default" in template else next(iter(template), None)


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
    continue_final_message: bool = False,
    tools: Sequence[dict[str, Any]] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    shape: Shape = USUAL,
) -> str:
    """The chat as one text, special tokens included: encode it with `add_special_tokens=False`.

    With `continue_final_message` it ends with the last message's content.

    Raises:
        RequestError: the template refuses these messages or leaves out the one to go on with, or a template argument is
            reserved.
    """
    kwargs = _checked_kwargs(template_kwargs or {})
    name = template_name(tokenizer, has_tools=bool(tools))
    if name is not None:
        kwargs = {**kwargs, "chat_template": name}
    if tools and "xml_tools" in template_text(tokenizer):  # SmolLM3 reads its tools under this name
        kwargs = {"xml_tools": list(tools), **kwargs}
    try:
        text = str(
            tokenizer.apply_chat_template(
                _with_thinking(shaped(messages, shape, tools), tokenizer),
                tools=shaped_tools(tools, shape) if tools else ([] if shape.listed_tools else None),
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


def _with_thinking(messages: list[dict[str, Any]], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Reasoning under every name that the template reads it by."""
    if not any(message.get("reasoning_content") for message in messages):
        return messages
    reads_thinking = _THINKING.search(template_text(tokenizer)) is not None
    return [
        {**message, "reasoning": thought, **({"thinking": thought} if reads_thinking else {})}
        if (thought := message.get("reasoning_content"))
        else message
        for message in messages
    ]


def _checked_kwargs(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in kwargs:
        if name in _RESERVED_KWARGS:
            raise RequestError(
                f"chat_template_kwargs can't set {name}: it takes the template's own variables only",
                param=f"chat_template_kwargs.{name}",
            )
    return kwargs


@dataclass(frozen=True, slots=True)
class _Finding:
    """What is known of conversations of one form: the shape that their template wants, and what it leaves out of it."""

    shape: Shape
    dropped: tuple[str, ...] = ()


class ChatRenderer:
    """Renders the chats of one model.

    Args:
        id_style: how the model's ids of calls look; see `mlxq_worker.dialects.calls.IdStyle`.
        model_name: what errors call the model.
    """

    def __init__(self, tokenizer: Tokenizer, *, model_name: str, id_style: str = "openai") -> None:
        self._tokenizer = tokenizer
        self._model_name = model_name
        self._id_style = id_style
        self._findings: OrderedDict[str, _Finding] = OrderedDict()  # least recently used first

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> str:
        """The chat as one text; see `render`.

        Raises:
            RequestError: the template refuses the messages, or would leave a part of them out.
        """
        kwargs = template_kwargs or {}
        if self._id_style == "kimi":
            messages = with_kimi_ids(messages)
        finding = self._finding(messages, tools, kwargs)
        if finding.dropped:
            raise self._left_out(finding.dropped[0])
        try:
            return render(
                self._tokenizer,
                messages,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                template_kwargs=kwargs,
                shape=finding.shape,
            )
        except RequestError as error:
            raise self._with_place(error, messages, tools, kwargs, finding.shape) from error

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None,
        kwargs: Mapping[str, Any],
        shape: Shape,
    ) -> str:
        return render(
            self._tokenizer, messages, add_generation_prompt=True, tools=tools, template_kwargs=kwargs, shape=shape
        )

    def _finding(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None, kwargs: Mapping[str, Any]
    ) -> _Finding:
        form = repr((form_of(messages), bool(tools), json.dumps(kwargs, sort_keys=True, default=str)))
        if form not in self._findings:
            self._findings[form] = self._find(messages, tools, kwargs)
            if len(self._findings) > _CACHED_FORMS:
                self._findings.popitem(last=False)
        self._findings.move_to_end(form)
        return self._findings[form]

    def _find(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None, kwargs: Mapping[str, Any]
    ) -> _Finding:
        """The first shape that shows all, else the first that the template takes with what it leaves out."""
        marked = MarkedChat.of(messages)
        taken: list[_Finding] = []
        for shape in self._shapes(messages, has_tools=bool(tools)):
            try:
                self._render(messages, tools, kwargs, shape)
                dropped = self._dropped(marked, tools, kwargs, shape)
            except RequestError as error:
                if error.code != "chat_template_error":
                    raise
                continue
            if not dropped:
                return _Finding(shape)
            taken.append(_Finding(shape, tuple(dropped)))
        return taken[0] if taken else _Finding(USUAL)

    def _shapes(self, messages: Sequence[Message], *, has_tools: bool) -> Sequence[Shape]:
        has_calls = any("tool_calls" in message or "tool_call_id" in message for message in messages)
        shapes = [
            shape
            for shape in SHAPES
            if (has_calls or not (shape.text_arguments or shape.short_ids))
            and (has_tools or not (shape.system_tools or shape.full_tools))
        ]
        if self._id_style == "nine":  # the ids that such a model has seen
            return sorted(shapes, key=lambda shape: not shape.short_ids)
        return shapes

    def _dropped(
        self,
        marked: MarkedChat,
        tools: Sequence[dict[str, Any]] | None,
        kwargs: Mapping[str, Any],
        shape: Shape,
    ) -> list[str]:
        try:
            text = self._render(marked.messages, tools, kwargs, shape)
        except RequestError:
            return []  # it looks into the texts, so nothing can be told of others
        dropped = marked.dropped_from(text)
        if (
            not dropped
            and any("tool_calls" in message for message in marked.messages)
            and arguments_are_misquoted(text)
        ):
            dropped = [
                f"messages[{index}].tool_calls" for index, each in enumerate(marked.messages) if "tool_calls" in each
            ]
        return [*self._dropped_tools(marked, tools, kwargs, shape), *dropped]

    def _dropped_tools(
        self,
        marked: MarkedChat,
        tools: Sequence[dict[str, Any]] | None,
        kwargs: Mapping[str, Any],
        shape: Shape,
    ) -> list[str]:
        if not tools:
            return []
        try:
            text = self._render(marked.messages, marked_tools(tools), kwargs, shape)
        except RequestError:
            return []
        return [] if all(name in text for name in marked_names(tools)) else ["tools"]

    def _left_out(self, param: str) -> RequestError:
        if param == "tools":
            text = f"the chat template of {self._model_name} does not write tools, so the model would not see them"
        else:
            text = f"the chat template of {self._model_name} leaves out {param}, so the model would not see it"
        return RequestError(text, param=param, code="unsupported")

    def _with_place(
        self,
        error: RequestError,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None,
        kwargs: Mapping[str, Any],
        shape: Shape,
    ) -> RequestError:
        """The same error with the message at which it comes up, if that can be told: the first without which it does
        not."""
        if error.code != "chat_template_error":
            return error
        for length in range(1, len(messages)):
            try:
                self._render(messages[:length], tools, kwargs, shape)
            except RequestError as earlier:
                if earlier.message == error.message:
                    return self._placed(error, length - 1)
        return self._placed(error, len(messages) - 1)

    @staticmethod
    def _placed(error: RequestError, index: int) -> RequestError:
        return RequestError(f"{error.message} (at messages[{index}])", param=error.param, code=error.code)
