"""Checks of single JSON values: a value and its path in, the value in its final form or a `RequestError` out.

A check never coerces: ``"1"`` and ``true`` are not 1. But JSON has one kind of number, so 4.0 is the integer 4. Knows
JSON's types and nothing of what any field means; `mlxq.requests.fields` puts these together. Values are what a JSON
decoder makes (str, int, float, bool, None, list, dict), so types are compared exactly: a Python bool must not pass as
an int.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mlxq.errors import RequestError

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Check(Generic[T_co]):
    """Takes a value and its path (for the error), returns the value as the contract wants it.

    `expected` completes "it must be": error messages say so, and the tables of docs/fields.md.
    """

    expected: str
    read: Callable[[Any, str], T_co]
    takes_all: Callable[[list[Any]], bool] = lambda values: False
    """Whether each of these would be returned as it is, where that can be told of millions in a moment."""

    def __call__(self, value: Any, param: str) -> T_co:
        return self.read(value, param)


MAX_INT32 = 2**31 - 1
MAX_SHOWN_CHARS = 40


def show(value: Any) -> str:
    """How an error message names a value: short, and in JSON's words."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "..."


def wrong_type(param: str, expected: str, value: Any) -> RequestError:
    """The error for a value of another JSON type than the field has."""
    return RequestError(f"{param} must be {expected}, not {show(value)}", param=param, code="invalid_type")


def out_of_range(param: str, expected: str, value: Any) -> RequestError:
    """The error for a value of the right type that can't be used."""
    return RequestError(f"{param} must be {expected}, not {show(value)}", param=param, code="out_of_range")


def missing(param: str, message: str) -> RequestError:
    """The error for a field that has to be there."""
    return RequestError(message, param=param, code="missing_field")


def integer(low: int, high: int = MAX_INT32) -> Check[int]:
    """An integer from `low` to `high`, both included."""
    expected = f"an integer from {low} to {high}"

    def read(value: Any, param: str) -> int:
        is_whole = type(value) is int or (type(value) is float and value.is_integer())
        if not is_whole:
            raise wrong_type(param, expected, value)
        if not low <= value <= high:
            raise out_of_range(param, expected, value)
        return int(value)

    def takes_all(values: list[Any]) -> bool:
        return set(map(type, values)) == {int} and low <= min(values) and max(values) <= high

    return Check(expected, read, takes_all)


def number(low: float, high: float = sys.float_info.max, *, above_low: bool = False) -> Check[float]:
    """A finite number from `low` to `high`, `low` itself excluded if `above_low`."""
    lower = f"above {low:g}" if above_low else f"of at least {low:g}"
    expected = f"a finite number {lower}" + ("" if high == sys.float_info.max else f" and at most {high:g}")

    def read(value: Any, param: str) -> float:
        if type(value) is not int and type(value) is not float:
            raise wrong_type(param, expected, value)
        # Compared before it becomes a float, which a huge integer can't; NaN compares false and is refused.
        if not low <= value <= high or (above_low and value == low):
            raise out_of_range(param, expected, value)
        return float(value)

    return Check(expected, read)


def one_of(choices: Mapping[str, Any]) -> Check[Any]:
    """One of some words, replaced by what it stands for."""
    expected = "one of " + ", ".join(choices)

    def read(value: Any, param: str) -> Any:
        if type(value) is not str:
            raise wrong_type(param, expected, value)
        if value not in choices:
            raise out_of_range(param, expected, value)
        return choices[value]

    return Check(expected, read)


def list_of(item: Check[T_co], of: str, *, at_least: int = 0, at_most: int | None = None) -> Check[tuple[T_co, ...]]:
    """A list with an allowed number of items, each checked under its own path, ``param[0]`` first. `of` says what the
    items are."""
    shape = "a non-empty list" if at_least else "a list"
    expected = f"{shape} of {of}" if at_most is None else f"{shape} of at most {at_most} {of}"

    def read(value: Any, param: str) -> tuple[T_co, ...]:
        if type(value) is not list:
            raise wrong_type(param, f"a list of {of}", value)
        if len(value) < at_least:
            raise RequestError(f"{param} must not be an empty list", param=param, code="out_of_range")
        if at_most is not None and len(value) > at_most:
            message = f"{param} must be {expected}, not of {len(value)}"
            raise RequestError(message, param=param, code="out_of_range")
        if item.takes_all(value):
            return tuple(value)
        return tuple(item(each, f"{param}[{index}]") for index, each in enumerate(value))

    return Check(expected, read)


def _boolean(value: Any, param: str) -> bool:
    if type(value) is not bool:
        raise wrong_type(param, "true or false", value)
    return value


def _string(value: Any, param: str) -> str:
    if type(value) is not str:
        raise wrong_type(param, "a string", value)
    return value


def _filled_string(value: Any, param: str) -> str:
    text = _string(value, param)
    if not text:
        raise out_of_range(param, "a non-empty string", value)
    return text


def _an_object(value: Any, param: str) -> dict[str, Any]:
    if type(value) is not dict:
        raise wrong_type(param, "an object", value)
    return value


boolean = Check("true or false", _boolean)
string = Check("a string", _string)
filled_string = Check("a non-empty string", _filled_string)
an_object = Check("an object", _an_object)


def unknown_field(name: str, names: Collection[str], path: str = "") -> RequestError:
    """The error for a field that nobody knows, with the name that was probably meant. `path` ends with a dot."""
    shown = name[:MAX_SHOWN_CHARS]
    close = _near_miss(shown, names)
    hint = "" if close is None else f"; did you mean {close}?"
    return RequestError(f"unknown field {path}{shown}{hint}", param=f"{path}{shown}", code="unknown_field")


def _near_miss(name: str, names: Collection[str]) -> str | None:
    """The name that a slip of the pen makes this one: another case, other separators, or a letter in five wrong,
    missing, too many or swapped."""
    written = _letters(name)
    for other in names:
        if _letters(other) == written:
            return other
    best = difflib.get_close_matches(written, [_letters(other) for other in names], n=1, cutoff=0.7)
    for other in names:
        letters = _letters(other)
        if best and letters == best[0] and _num_edits(written, letters) <= max(1, len(letters) // 5):
            return other
    return None


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def _num_edits(left: str, right: str) -> int:
    """How many letters have to be put in, left out, replaced, or swapped with their neighbours."""
    before: list[int] = []
    last = list(range(len(right) + 1))
    for row, letter in enumerate(left, start=1):
        this = [row]
        for column, other in enumerate(right, start=1):
            edits = min(last[column] + 1, this[-1] + 1, last[column - 1] + (letter != other))
            is_swap = row > 1 and column > 1 and letter == right[column - 2] and left[row - 2] == other
            this.append(min(edits, before[column - 2] + 1) if is_swap else edits)
        before, last = last, this
    return last[-1]


def same_json(left: Any, right: Any) -> bool:
    """Whether two values are the same JSON: ``true`` is not 1, as Python's ``==`` says, but 1.0 is."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return bool(left == right)


def is_deeper_than(value: Any, max_depth: int) -> bool:
    """Whether lists and objects are nested more than `max_depth` levels; does not recurse itself."""
    level = [value]
    for _ in range(max_depth):
        level = [child for parent in level for child in _children(parent) if type(child) in (dict, list)]
        if not level:
            return False
    return True


def _children(value: Any) -> Any:
    if type(value) is dict:
        return value.values()
    return value if type(value) is list else ()
