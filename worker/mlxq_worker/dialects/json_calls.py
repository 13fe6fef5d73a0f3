"""Reads calls whose arguments are JSON, whatever stands around them.

One reader for all: `JsonSyntax` says what opens and closes calls, and how an object becomes a call. Keys that no family
writes make an object no call, so that nothing it says is lost.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mlxq_worker.dialects.calls import BLANKS, Call, CallSyntax, Found, Offered, skip

_NAMES = ("name", "function", "tool_name", "function_name")
_ARGUMENTS = ("arguments", "parameters", "args", "kwargs")
_IDS = ("id", "call_id", "tool_call_id")
_OTHERS = frozenset({"type", "index"})
_FENCE, _FENCE_END = re.compile(r"\s*```(?:json)?\s*"), re.compile(r"\s*```")
"""Of Markdown, in which some models put their JSON."""


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits} is more than a number can be")
    return value


# Models write line breaks inside strings as they are.
_DECODER = json.JSONDecoder(strict=False, parse_constant=_no_constant, parse_float=_finite)


def value_at(text: str, position: int) -> tuple[Any, int] | None:
    """The JSON value that stands at an index, blanks before it aside, and the index behind it."""
    try:
        return _DECODER.raw_decode(text, skip(text, position, BLANKS))
    except (ValueError, RecursionError):
        return None


def named_call(value: Any, offered: Offered) -> Call | None:
    """The call that an object with a name and arguments is: under any of the keys that families use, the arguments as
    an object or as JSON in a text."""
    if not isinstance(value, Mapping):
        return None
    if isinstance(value.get("function"), Mapping):  # OpenAI's own shape
        inner = {key: each for key, each in value.items() if key != "function"}
        return named_call({**inner, **value["function"]}, offered)
    if not set(value) <= {*_NAMES, *_ARGUMENTS, *_IDS, *_OTHERS}:
        return None
    names = [value[key] for key in _NAMES if key in value]
    given = [arguments for key in _ARGUMENTS if key in value and (arguments := value[key]) not in (None, {}, "")]
    if len(names) != 1 or any(each != given[0] for each in given[1:]):
        return None
    arguments = as_object(given[0]) if given else {}
    return offered.call(names[0], arguments, next((value[key] for key in _IDS if key in value), None))


def with_arguments(value: Any, offered: Offered) -> Call | None:
    """The same, but the arguments may not be left out."""
    has_arguments = isinstance(value, Mapping) and any(key in value for key in _ARGUMENTS)
    return named_call(value, offered) if has_arguments else None


def single_key_call(value: Any, offered: Offered) -> Call | None:
    """Apertus' way: ``{"name": {arguments}}``."""
    if not isinstance(value, Mapping) or len(value) != 1:
        return None
    [(name, arguments)] = value.items()
    return offered.call(name, as_object(arguments))


def as_object(value: Any) -> Any:
    """Arguments as an object; some templates write them as JSON in a text."""
    if isinstance(value, str):
        decoded = value_at(value, 0)
        return decoded[0] if decoded and not value[decoded[1] :].strip() else value
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonSyntax:
    """Calls as JSON between two markers.

    Args:
        start: a regular expression that matches where calls begin, JSON following.
        end: one for what closes them.
        is_list: JSON is one list of calls, or a single call; otherwise values follow each other, maybe with `between`.
        is_last: nothing but blanks may follow.
        call: makes a call of a JSON value.
        marker, openers, line_openers: as in `CallSyntax`.
    """

    start: str
    end: str = ""
    is_list: bool = False
    is_last: bool = False
    between: str = r"\s*"
    call: Callable[[Any, Offered], Call | None] = named_call
    marker: str = ""
    openers: tuple[str, ...] = ()
    line_openers: tuple[str, ...] = ()

    def syntax(self) -> CallSyntax:
        start = re.compile(self.start)
        end = re.compile(self.end) if self.end else None
        between = re.compile(self.between)

        def read(text: str, position: int, offered: Offered) -> Found | None:
            match = start.match(text, position)
            if match is None:
                return None
            found = self._values(text, match.end(), offered, between)
            if found is None:
                return None
            calls, position = found
            if end is not None:
                closed = end.match(text, skip(text, position, BLANKS))
                if closed is None and not _may_be_unclosed(text, position, start):
                    return None
                position = closed.end() if closed else position
            if self.is_last and text[position:].strip():
                return None
            return Found(calls, position)

        return CallSyntax(
            opener=start, read=read, marker=self.marker, openers=self.openers, line_openers=self.line_openers
        )

    def _values(
        self, text: str, position: int, offered: Offered, between: re.Pattern[str]
    ) -> tuple[tuple[Call, ...], int] | None:
        start, position = position, skip(text, position, _FENCE)
        is_fenced = position > start
        decoded = value_at(text, position) or _in_two_braces(text, position)
        if decoded is None:
            return None
        values, position = (decoded[0] if isinstance(decoded[0], list) else [decoded[0]]), decoded[1]
        while not self.is_list and (more := value_at(text, skip(text, position, between))):
            if not isinstance(more[0], Mapping):
                break
            values, position = [*values, more[0]], more[1]
        calls = [self.call(value, offered) for value in values]
        known = tuple(call for call in calls if call is not None)
        if not known or len(known) != len(calls):
            return None
        return known, skip(text, position, _FENCE_END) if is_fenced else position


def _in_two_braces(text: str, position: int) -> tuple[Any, int] | None:
    """Some models copy the doubled braces of an example."""
    start = skip(text, position, BLANKS)
    decoded = value_at(text, start + 1) if text.startswith("{{", start) else None
    return (decoded[0], decoded[1] + 1) if decoded and text.startswith("}", decoded[1]) else None


def _may_be_unclosed(text: str, position: int, start: re.Pattern[str]) -> bool:
    """Some models leave their calls open: at the end of the answer, or before the next call."""
    rest = skip(text, position, BLANKS)
    return rest == len(text) or start.match(text, rest) is not None
