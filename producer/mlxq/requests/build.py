"""Builds one request in a Python program: keyword arguments in, what `Client.submit` takes out.

Every rule about fields is that of an input line (`mlxq.requests.openai`); this adds a custom id where none is given.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from mlxq.requests.openai import ParsedLine, parse_object, plain_json


def request(
    *,
    prompt: str | Sequence[int] | None = None,
    messages: Sequence[Mapping[str, Any]] | None = None,
    custom_id: str | None = None,
    **fields: Any,
) -> ParsedLine:
    """One request: a completion of `prompt`, or the next message after `messages`.

        request(prompt="The capital of France is", max_tokens=5, temperature=0)
        request(messages=[{"role": "user", "content": "Say hello"}], custom_id="greeting-1")

    Args:
        prompt: the text to go on from, or its token ids.
        messages: a conversation in OpenAI's form, a dict each.
        custom_id: what the answer is known by, unique within its batch, up to 512 characters; a random one by default.
            Give ids of your own where a program that is started again is to complete a batch that it began.
        fields: any other field of the body of a request (`max_tokens`, `temperature`, `stop`, `response_format`, ...)
            under its name in the OpenAI API or in vLLM. A field that is `None` counts as not given.

    Raises:
        RequestError: a field is unknown, has a wrong value, or doesn't go with another; `error.param` is its name.
            Not exactly one of `prompt` and `messages` is given.
    """
    given = {"custom_id": custom_id, "prompt": prompt, "messages": messages, **fields}
    body = {name: plain_json(value, name) for name, value in given.items()}
    line = {"custom_id": body.pop("custom_id"), "body": body}
    return parse_object(line, default_custom_id=f"request-{secrets.token_hex(8)}")
