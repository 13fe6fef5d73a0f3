"""Reads what `LLM.generate` and `LLM.chat` are given into requests, all of it before anything runs.

An error names the prompt by its number, from 0. What only the model can tell is found later, by whoever prepares it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from mlxq.contract import CHAT, COMPLETIONS, Request
from mlxq.errors import RequestError
from mlxq.offline.sampling_params import SamplingParams
from mlxq.requests import checks
from mlxq.requests.assemble import request_of
from mlxq.requests.field import honoured, refused, table
from mlxq.requests.fields import FIELDS
from mlxq.requests.openai import plain_json

Prompt = str | Sequence[int] | Mapping[str, Any]
"""Text, token ids, or an object with `prompt` or `prompt_token_ids`, as vLLM's `TextPrompt` and `TokensPrompt`."""
Message = Mapping[str, Any]

PROMPT_FIELDS = table(
    honoured("prompt", checks.filled_string, "the text"),
    honoured("prompt_token_ids", FIELDS["prompt"].check or checks.string, "its token ids"),
    refused("multi_modal_data", {}, doc="images, audio and video"),
    refused("multi_modal_uuids", {}, doc="names of those"),
    refused("mm_processor_kwargs", {}, doc="how to read images"),
    refused("prompt_embeds", doc="embeddings in the place of tokens"),
    refused("cache_salt", doc="keep others from sharing a prefix"),
)
"""What a prompt may be that is an object."""


@dataclass(frozen=True, slots=True)
class AskedPrompt:
    """One prompt to be answered; `text` is the prompt's, where it was given as text."""

    request: Request
    text: str | None


def completions(
    prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams]
) -> list[AskedPrompt]:
    """The requests that go on from prompts, each with parameters of its own or all with the same.

    Raises:
        RequestError: a prompt or a parameter can't be used, or there are not as many of both.
    """
    listed = _listed(prompts)
    made = []
    for number, (prompt, template) in enumerate(_templates(listed, params, COMPLETIONS, {"prompt": "-"})):
        with _Numbered("prompt", number):
            value, text = _read_prompt(prompt)
            made.append(AskedPrompt(replace(template, custom_id=str(number), prompt=value), text))
    return made


def chats(
    conversations: Sequence[Message] | Sequence[Sequence[Message]],
    params: SamplingParams | Sequence[SamplingParams],
    turn: Mapping[str, Any],
) -> list[AskedPrompt]:
    """The requests that answer conversations.

    Args:
        turn: the other fields of a chat (`tools`, `chat_template_kwargs`, ...); those that are `None` count as not
            given.

    Raises:
        RequestError: a message or a parameter can't be used, or there are not as many of both.
    """
    listed = _conversations(conversations)
    stand_in = {"messages": [{"role": "user", "content": "-"}]}
    stand_in |= {name: plain_json(value, name) for name, value in turn.items() if value is not None}
    made = []
    for number, (messages, template) in enumerate(_templates(listed, params, CHAT, stand_in)):
        with _Numbered("conversation", number):
            read = FIELDS["messages"].read(plain_json(list(messages), "messages"), "messages")
            made.append(AskedPrompt(replace(template, custom_id=str(number), messages=read), None))
    return made


def _templates(
    items: Sequence[Any], params: SamplingParams | Sequence[SamplingParams], endpoint: Any, stand_in: dict[str, Any]
) -> Iterator[tuple[Any, Request]]:
    """Each item with a request that lacks it. Parameters are read once for each object, as most share one."""
    if isinstance(params, SamplingParams):
        each_params: Sequence[SamplingParams] = [params] * len(items)
    elif isinstance(params, Mapping):  # whose length would be counted
        raise checks.wrong_type("sampling_params", "SamplingParams, one or a list", type(params).__name__)
    elif len(params) == len(items):
        each_params = params
    else:
        text = f"sampling_params must be one, or one for each of the {len(items)} prompts, not {len(params)}"
        raise RequestError(text, param="sampling_params")
    read: dict[int, Request] = {}
    for item, one in zip(items, each_params, strict=True):
        if id(one) not in read:
            if not isinstance(one, SamplingParams):
                raise checks.wrong_type("sampling_params", "SamplingParams, one or a list", type(one).__name__)
            body = {**stand_in, **one.fields(chat=endpoint == CHAT)}
            request = request_of("", endpoint, body, "")
            read[id(one)] = replace(request, sampling=replace(request.sampling, return_token_ids=True))
        yield item, read[id(one)]


def _listed(prompts: Any) -> Sequence[Any]:
    """Several prompts, also where there is one: a text, an object, or the ids of one."""
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    items = _items(prompts, "prompts", "a prompt or a list of prompts")
    return [items] if items and not isinstance(items[0], (str, Mapping)) and not _is_list(items[0]) else items


def _conversations(given: Any) -> Sequence[Any]:
    items = _items(given, "messages", "a conversation (a list of messages) or a list of conversations")
    return [items] if items and isinstance(items[0], Mapping) else items


def _items(given: Any, param: str, expected: str) -> Sequence[Any]:
    if isinstance(given, (str, bytes, Mapping)) or not _is_list(given):
        raise checks.wrong_type(param, expected, type(given).__name__)
    return list(given)


def _is_list(value: Any) -> bool:
    """A list, a tuple, an array or a column of a table."""
    return hasattr(value, "__iter__") and hasattr(value, "__len__")


def _read_prompt(prompt: Any) -> tuple[str | tuple[int, ...], str | None]:
    """The prompt as a request has it, and its text where that is given."""
    if not isinstance(prompt, Mapping):
        value = plain_json(prompt, "prompt") if isinstance(prompt, str) else plain_json(list(prompt), "prompt")
        read = FIELDS["prompt"].read(value, "prompt")
        return read, read if isinstance(read, str) else None
    given = {name: value for name, value in prompt.items() if value is not None}
    for name, value in given.items():
        if name not in PROMPT_FIELDS:
            raise checks.unknown_field(name, PROMPT_FIELDS, "prompt.")
        if PROMPT_FIELDS[name].check is None:
            PROMPT_FIELDS[name].read(value, name)
    text = None
    if "prompt" in given:
        text = PROMPT_FIELDS["prompt"].read(plain_json(given["prompt"], "prompt"), "prompt")
    if "prompt_token_ids" not in given:
        if text is None:
            raise checks.missing("prompt", "an object needs prompt or prompt_token_ids")
        return text, text
    ids = plain_json(list(given["prompt_token_ids"]), "prompt_token_ids")
    return FIELDS["prompt"].read(ids, "prompt_token_ids"), text


@dataclass(frozen=True, slots=True)
class _Numbered:
    """Says in an error which of many it is about."""

    what: str
    number: int

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, RequestError):
            message = f"{self.what} {self.number}: {error.message}"
            raise RequestError(message, param=error.param, code=error.code, status_code=error.status_code) from error
