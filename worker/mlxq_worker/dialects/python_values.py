"""Reads a value written as Python or as JSON, without ever evaluating anything."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator
from typing import Any

STRING = re.compile(
    r"'''(?:\\.|(?!''').)*'''|\"\"\"(?:\\.|(?!\"\"\").)*\"\"\"|'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", re.DOTALL
)
_JSON_WORDS = re.compile(r"\b(true|false|null)\b")
_PYTHON_WORDS = {"true": "True", "false": "False", "null": "None"}


def python_literal(source: str) -> Any:
    """The value of a literal, JSON's or else Python's.

    Raises:
        ValueError: it is none.
    """
    try:
        return json.loads(source, parse_constant=_no_constant, strict=False)
    except (ValueError, RecursionError):
        pass  # Python's, then
    source = "".join(_with_python_words(source)).strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python doesn't know, which stay as they are
            value = ast.literal_eval(source)
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(str(error)) from error
    return _as_json(value)


def _with_python_words(source: str) -> Iterator[str]:
    """JSON's words as Python's, outside strings. A line break inside a string is written as an escape."""
    position = 0
    for string in STRING.finditer(source):
        yield _JSON_WORDS.sub(lambda match: _PYTHON_WORDS[match[1]], source[position : string.start()])
        yield string[0] if string[0][:3] in ("'''", '"""') else string[0].replace("\n", "\\n")
        position = string.end()
    yield _JSON_WORDS.sub(lambda match: _PYTHON_WORDS[match[1]], source[position:])


def _as_json(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and value == value and abs(value) != float("inf"):
        return value
    if isinstance(value, list | tuple):
        return [_as_json(each) for each in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _as_json(each) for key, each in value.items()}
    raise ValueError(f"{value!r} is nothing that JSON has")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
