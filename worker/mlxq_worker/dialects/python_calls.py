"""Reads calls written as Python: ``[name(key=value, ...), ...]``, where values are Python's literals or JSON's words.

Parameters may have any name, Python's own words too. A value that is no literal, or an argument without a name, makes
the text no call. Nothing is ever evaluated.
"""

from __future__ import annotations

import re
from typing import Any

from mlxq_worker.dialects.calls import BLANKS, Call, Found, Offered, skip
from mlxq_worker.dialects.python_values import STRING, python_literal

_NAME = re.compile(r"\s*([^\W\d][\w./:-]*)\s*\(")
_KEY = re.compile(r"\s*([^\W\d]\w*|\"[^\"\n]+\")\s*=(?!=)")
_OPENING, _CLOSING = "([{", ")]}"


def calls_at(text: str, position: int, offered: Offered, *, is_list: bool = True) -> Found | None:
    """The calls that begin at an index: a list in brackets, or calls with blanks or commas between them."""
    opened = False
    position = skip(text, position, BLANKS)
    if is_list:
        if not text.startswith("[", position):
            return None
        position, opened = position + 1, True
    calls: list[Call] = []
    while (match := _NAME.match(text, position)) is not None:
        found = _call(text, match, offered)
        if found is None:
            return None
        calls.append(found[0])
        position = found[1]
        after = skip(text, position, BLANKS)
        if not text.startswith(",", after):
            break
        position = after + 1
    if not is_list:
        return _more_calls(text, position, offered, calls)
    position = skip(text, position, BLANKS)
    if not calls or (opened and not text.startswith("]", position)):
        return None
    return Found(tuple(calls), position + 1)


def _more_calls(text: str, position: int, offered: Offered, calls: list[Call]) -> Found | None:
    """Calls on lines of their own."""
    while (match := _NAME.match(text, position)) is not None:
        found = _call(text, match, offered)
        if found is None:
            break
        calls.append(found[0])
        position = found[1]
    return Found(tuple(calls), position) if calls else None


def _call(text: str, match: re.Match[str], offered: Offered) -> tuple[Call, int] | None:
    name = offered.known_name(match[1])
    if name is None:
        return None
    arguments: dict[str, Any] = {}
    position = skip(text, match.end(), BLANKS)
    while not text.startswith(")", position):
        key = _KEY.match(text, position)
        end = _end_of_value(text, key.end()) if key else None
        if key is None or end is None or key[1].strip('"') in arguments:
            return None
        try:
            arguments[key[1].strip('"')] = python_literal(text[key.end() : end])
        except ValueError:
            return None
        position = skip(text, end, BLANKS)
        if text.startswith(",", position):
            position = skip(text, position + 1, BLANKS)
    return Call(name, arguments), position + 1


def _end_of_value(text: str, position: int) -> int | None:
    """The index of the comma or bracket that ends a value; strings and brackets inside it don't count."""
    depth = 0
    while position < len(text):
        char = text[position]
        if char in "'\"":
            string = STRING.match(text, position)
            if string is None:
                return None
            position = string.end()
            continue
        if depth == 0 and char in ",)":
            return position
        depth += (char in _OPENING) - (char in _CLOSING)
        if depth < 0:
            return None
        position += 1
    return None
