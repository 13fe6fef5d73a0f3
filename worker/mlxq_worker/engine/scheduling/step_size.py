"""Chooses how many tokens a step takes through the model, from how long steps of several sizes took.

Plain Python over timings; `runners/step_timing` takes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_STALL = 16
MAX_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class StepTiming:
    """How long a step of so many tokens took."""

    num_tokens: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.num_tokens} tokens {1000 * self.seconds:.3g} ms"

    @property
    def seconds_per_token(self) -> float:
        return self.seconds / self.num_tokens


def first_size(num_rows: int) -> int:
    """The smallest step that leaves most of its tokens to prompts while all rows decode, as a power of two."""
    return max(128, 1 << (4 * num_rows - 1).bit_length())


def choose_size(decode: StepTiming, timings: Sequence[StepTiming]) -> int:
    """How many tokens a step takes at most.

    The size at which a token costs least. For the decoding rows' sake no step may take longer than `MAX_STALL` steps
    without prompts, so that a prompt that joins never holds their answers up for longer than that; but the smallest
    size is always allowed, or prompts would never get on.

    Args:
        decode: a step of the decoding rows alone.
        timings: at least one, by rising size.
    """
    first, *larger = timings
    allowed = [first, *(timing for timing in larger if timing.seconds <= MAX_STALL * decode.seconds)]
    return min(allowed, key=lambda timing: timing.seconds_per_token).num_tokens


def next_size(decode: StepTiming, timings: Sequence[StepTiming]) -> int | None:
    """The next size worth timing: twice the last one, unless tokens got dearer when it was doubled before, or such a
    step will surely take too long."""
    *before, last = timings
    if before and last.seconds_per_token > _CLEARLY_DEARER * before[-1].seconds_per_token:
        return None
    too_long = _CHEAPEST_DOUBLE * last.seconds > MAX_STALL * decode.seconds
    return None if too_long or 2 * last.num_tokens > MAX_TOKENS else 2 * last.num_tokens


_CLEARLY_DEARER = 1.05
"""By more than two measurements of the same differ."""
_CHEAPEST_DOUBLE = 1.8
"""Twice the tokens take at least so many times as long, once a step is one that may be too long."""
