"""Bounds and values of numbers, written so that the compiler keeps them exactly.

llguidance reads every number as a 64-bit float and counts integers in 64 bits. A bound that this would move outward is
moved inward instead where the range is so wide that it doesn't matter, and refused where it does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from mlxq_worker.schema.keywords import SchemaError, types_of

_KEYWORDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_MOST = 2**63 - 1
_LEAST = -(2**63 - 1024)
"""The least that llguidance can negate, as a float."""
_WIDE = 2**53
_HUGE = 3e38
"""From here on a bound is that of a float's own range, and says no more than that the number can be read as one."""
_LARGEST_FLOAT = 1.7976931348623157e308
_LARGEST = 9e17
"""Larger bounds of floats llguidance can't write down."""
_TINY = Fraction(1, 10**30)
"""Between 0 and this no bound of a float can be written down."""


def with_bounds(schema: dict[str, Any], path: str) -> dict[str, Any]:
    """The schema with bounds that are kept as they are meant, and without those that say nothing.

    Raises:
        SchemaError: there is no such bound.
    """
    given = {name: schema[name] for name in _KEYWORDS if name in schema}
    rest = {name: value for name, value in schema.items() if name not in _KEYWORDS}
    if any(not _is_number(value) and not isinstance(value, bool) for value in given.values()):
        return schema  # for the compiler to refuse
    lower, upper = _side(given, "minimum", "exclusiveMinimum"), _side(given, "maximum", "exclusiveMaximum")
    types = types_of(schema)
    if "integer" in types and "number" not in types:
        return rest | _integer_bounds(lower, upper, path) | _whole_steps(rest)
    kept = _float_bounds(lower, upper, path)
    if kept or not given:
        return rest | kept
    # Where there are bounds the compiler writes no exponent, and so none that is far beyond a float's range.
    return {**rest, "allOf": [*rest.get("allOf", ()), {"anyOf": [{"minimum": 0}, {"maximum": 0}]}]}


def check_value(value: Any, path: str) -> None:
    """
    Raises:
        SchemaError: a number in the value is none that the compiler can keep.
    """
    for number in _numbers(value):
        if isinstance(number, int) and int(_float(number)) != number:
            raise SchemaError(path, f"{number} can't be enforced: it has no exact 64-bit float")


Bound = tuple[Fraction, bool]
"""A limit, and whether it is excluded."""


def _side(given: dict[str, Any], inclusive: str, exclusive: str) -> Bound | None:
    """The stricter of two bounds on one side. In draft 4 the second is a boolean that is said of the first."""
    bounds: list[Bound] = []
    flag = given.get(exclusive)
    if inclusive in given and not isinstance(given[inclusive], bool):
        bounds.append((Fraction(given[inclusive]), flag is True))
    if exclusive in given and not isinstance(flag, bool):
        bounds.append((Fraction(given[exclusive]), True))
    sign = 1 if inclusive == "minimum" else -1
    return max(bounds, key=lambda bound: (sign * bound[0], bound[1]), default=None)


def _integer_bounds(lower: Bound | None, upper: Bound | None, path: str) -> dict[str, int]:
    least = None if lower is None else _least_integer(lower)
    most = None if upper is None else _most_integer(upper)
    if (least is not None and least > _MOST) or (most is not None and most < _LEAST):
        raise SchemaError(path, "integers beyond 64 bits can't be enforced")
    if least is not None and most is None and least >= 10**18:
        most = _MOST
    if most is not None and least is None and most <= -(10**18):
        least = _LEAST
    kept_least = None if least is None else max(_LEAST, _next_float(least, upward=True))
    kept_most = None if most is None else _MOST if most >= _MOST else _next_float(most, upward=False)
    is_wide = least is None or most is None or most - least >= _WIDE
    if not is_wide and (kept_least, kept_most) != (least, most):
        raise SchemaError(
            path, f"the bounds {least} and {most} can't be enforced: beyond 2**53 not every integer has an exact float"
        )
    return _given(minimum=kept_least, maximum=kept_most)


def _least_integer(bound: Bound) -> int:
    limit, is_excluded = bound
    return math.floor(limit) + 1 if is_excluded else math.ceil(limit)


def _most_integer(bound: Bound) -> int:
    limit, is_excluded = bound
    return math.ceil(limit) - 1 if is_excluded else math.floor(limit)


def _next_float(number: int, *, upward: bool) -> int:
    """The nearest integer in this direction that a float holds."""
    nearest = _float(number)
    if (int(nearest) < number) if upward else (int(nearest) > number):
        nearest = math.nextafter(nearest, math.inf if upward else -math.inf)
    return int(nearest)


def _float(number: int) -> float:
    try:
        return float(number)
    except OverflowError:
        return _LARGEST_FLOAT if number > 0 else -_LARGEST_FLOAT


def _float_bounds(lower: Bound | None, upper: Bound | None, path: str) -> dict[str, float]:
    kept: dict[str, float] = {}
    for bound, outward, inclusive, exclusive in (
        (lower, -1, "minimum", "exclusiveMinimum"),
        (upper, 1, "maximum", "exclusiveMaximum"),
    ):
        if bound is None or bound[0] * outward >= _HUGE:
            continue
        limit, is_excluded = bound
        if abs(limit) > _LARGEST:
            raise SchemaError(path, f"{inclusive} can't be enforced: it is beyond {_LARGEST:g}")
        if 0 < abs(limit) < _TINY:
            limit = Fraction(0) if limit * outward > 0 else -outward * _TINY
        number = float(limit)
        if (number - limit) * outward > 0:
            number = math.nextafter(number, -outward * math.inf)
        kept[exclusive if is_excluded else inclusive] = number
    return kept


def _whole_steps(schema: dict[str, Any]) -> dict[str, Any]:
    """An integer that is a multiple of 1.5 is one of 3."""
    step: Any = schema.get("multipleOf")
    is_positive = type(step) in (int, float) and step > 0
    return {"multipleOf": Fraction(str(step)).numerator} if is_positive else {}


def _given(**values: int | None) -> dict[str, int]:
    return {name: value for name, value in values.items() if value is not None}


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _numbers(value: Any) -> Iterator[float | int]:
    if _is_number(value):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from _numbers(each)
