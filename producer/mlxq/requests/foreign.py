"""Lines that were written for other programs or as training data: recognised by their shape, and named.

They aren't read; the error says whose they are and what mlxq reads instead. Knows the names of their fields only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlxq.errors import RequestError

_ONE_OF_OURS = frozenset({"body", "prompt", "messages"})
_INPUT = "for a response say so in its url, /v1/responses, and put it into body; embeddings aren't made here"
_AS_PROMPT = "call it prompt, or put it into messages"


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a line of some origin has, beside other fields: one of these names, with an object, a list or a text."""

    names: tuple[str, ...]
    value_type: type
    whose: str
    remedy: str


_SHAPES = (
    _Shape(("contents",), list, "Gemini's API", "put it into request, as in its batches, with a key beside it"),
    _Shape(
        ("conversations", "conversation"), list, "ShareGPT's data sets", "write them as messages, with role and content"
    ),
    _Shape(("instruction",), str, "Alpaca's data sets", _AS_PROMPT),
    _Shape(("inputs",), str, "Hugging Face's text generation", _AS_PROMPT),
    _Shape(("input",), str, "OpenAI's responses or embeddings", _INPUT),
    _Shape(("text",), str, "datatrove's documents", _AS_PROMPT),
    _Shape(("question", "query"), str, "a data set of questions", _AS_PROMPT),
)


def foreign_line(line: Mapping[str, Any]) -> RequestError | None:
    """The error for a line of another service; `None` for one that isn't known as such."""
    if not _ONE_OF_OURS.isdisjoint(line):
        return None
    for shape in _SHAPES:
        for name in shape.names:
            if isinstance(line.get(name), shape.value_type):
                return _error(f"this is a line of {shape.whose} ({name}): {shape.remedy}", name)
    return None


def foreign_body(body: Mapping[str, Any]) -> RequestError | None:
    """The error for a body that asks an endpoint of OpenAI's which mlxq isn't."""
    if "input" in body and _ONE_OF_OURS.isdisjoint(body):
        text = f"body.input is that of OpenAI's responses or embeddings: {_INPUT}"
        return _error(text, "input")
    return None


def _error(message: str, param: str) -> RequestError:
    return RequestError(message, param=param, code="foreign_format")
