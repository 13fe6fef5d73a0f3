"""What programs hand in as requests, made into parsed lines: built ones, objects as on an input line, plain prompts.

One request that can't be accepted is an error that says which; so is an id that is used twice, since answers are told
apart by it. Sends nothing anywhere.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mlxq.errors import ConfigError, RequestError
from mlxq.requests.openai import ParsedLine, parse_object, text_request
from mlxq.storage.id_table import IdTable

RequestLike = ParsedLine | Mapping[str, Any] | str
"""What `mlxq.request` builds; an object as it would stand on an input line; or the text of a prompt."""


def as_requests(items: Iterable[RequestLike], *, chat: bool = False) -> Iterable[ParsedLine]:
    """The requests, each id once. A list is checked as a whole at once; anything else item by item, as it is read.

    Args:
        chat: make plain text a chat message rather than a bare prompt.

    Raises:
        RequestError: an item can't be accepted, or has the id of an earlier one; the message has its number.
        ConfigError: this is one request, not several.
    """
    if isinstance(items, (str, bytes, Mapping, ParsedLine)):
        raise ConfigError("several requests are expected: put a single one into a list")
    lines = _checked(items, chat)
    return list(lines) if isinstance(items, (list, tuple)) else lines


def _checked(items: Iterable[RequestLike], chat: bool) -> Iterator[ParsedLine]:
    numbers = IdTable()
    for number, item in enumerate(items, start=1):
        line = _parsed(item, number, chat)
        if not numbers.add(line.request.custom_id, number):
            first = numbers.get(line.request.custom_id)
            message = f"request {number} has the custom_id of request {first}: every id must be used once"
            raise RequestError(message, param="custom_id", code="duplicate_custom_id")
        yield line


def _parsed(item: RequestLike, number: int, chat: bool) -> ParsedLine:
    if isinstance(item, ParsedLine):
        return item
    custom_id = f"request-{secrets.token_hex(8)}"
    try:
        if isinstance(item, str):
            return text_request(item, custom_id=custom_id, chat=chat)
        return parse_object(dict(item) if isinstance(item, Mapping) else item, default_custom_id=custom_id)
    except RequestError as error:
        raise RequestError(
            f"request {number}: {error.message}", param=error.param, code=error.code, status_code=error.status_code
        ) from error
