"""Chooses how many tokens a step takes through the model, from how long steps of several sizes took.

Takes one or two dozen steps, once, when prompts first fill a step: about a second for a model of 40M parameters on a
CPU, which a few short prompts never pay. A machine with other work to do makes some of them longer and none shorter, so
sizes between which it is close are timed again, in turn, and the least of each counts. Plain Python over timings;
`runners/step_timing` takes them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

log = logging.getLogger(__name__)

MAX_STALL = 16
MAX_TOKENS = 4096
_MAX_SECONDS = 1.5
"""Nothing more is timed after so long."""
_TIMES_AGAIN = 2
"""So often is it made sure that a size is too large, and which one is best."""


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


class StepSize:
    """How many tokens a step may take, for one engine after the other: told, or chosen by the first that needs to know.

    Args:
        tokens: what is told; `None` to have it chosen.
    """

    def __init__(self, tokens: int | None = None) -> None:
        self._tokens = tokens

    @property
    def known(self) -> int | None:
        return self._tokens

    def tokens(self, num_rows: int) -> int:
        """Beside up to `num_rows` decoding rows: until the size is chosen, the smallest one that could be."""
        return first_size(num_rows) if self._tokens is None else self._tokens

    def choose(self, step_seconds: Callable[[int], float], num_rows: int) -> int:
        """Choose the size, by `find_size`."""
        self._tokens = find_size(step_seconds, num_rows)
        return self._tokens


def find_size(step_seconds: Callable[[int], float], num_rows: int) -> int:
    """How many tokens a step should take beside up to `num_rows` decoding rows.

    Args:
        step_seconds: how long a step of so many tokens takes once it is warm; does it.
    """
    end = time.perf_counter() + _MAX_SECONDS
    step_seconds(num_rows)  # the very first step loads weights and kernels, too
    steps = _Steps(step_seconds, num_rows)
    size: int | None = first_size(num_rows)
    while size is not None and (not steps.timings or time.perf_counter() < end):
        steps.time(size)
        size = next_size(steps.decode, steps.timings)
        for _ in range(_TIMES_AGAIN):
            if size is None and time.perf_counter() < end:
                steps.time_again(steps.timings[-2:])
                size = next_size(steps.decode, steps.timings)
    for _ in range(_TIMES_AGAIN):
        if len(best := close_to_best(steps.timings)) > 1 and time.perf_counter() < end:
            steps.time_again(best)
    chosen = choose_size(steps.decode, steps.timings)
    log.info("a step takes up to %d tokens: %s", chosen, ", ".join(map(str, (steps.decode, *steps.timings))))
    return chosen


class _Steps:
    """The shortest step so far of each size that was timed.

    Args:
        step_seconds: how long a step of so many tokens takes; does it.
        num_rows: of the decoding rows alone.

    Attributes:
        decode: a step of those.
        timings: all others, by rising size.
    """

    def __init__(self, step_seconds: Callable[[int], float], num_rows: int) -> None:
        self._step_seconds = step_seconds
        self.decode = StepTiming(num_rows, step_seconds(num_rows))
        self.timings: list[StepTiming] = []

    def time(self, num_tokens: int) -> None:
        """Time a step that is larger than those before."""
        self.timings.append(StepTiming(num_tokens, self._step_seconds(num_tokens)))

    def time_again(self, timings: Sequence[StepTiming]) -> None:
        """Time these once more, and the decoding rows'."""
        self.decode = self._least(self.decode)
        self.timings = [self._least(timing) if timing in timings else timing for timing in self.timings]

    def _least(self, timing: StepTiming) -> StepTiming:
        return replace(timing, seconds=min(timing.seconds, self._step_seconds(timing.num_tokens)))


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


def close_to_best(timings: Sequence[StepTiming]) -> list[StepTiming]:
    """Those whose tokens cost so little more than the cheapest ones that this may be a disturbance."""
    least = min(timing.seconds_per_token for timing in timings)
    return [timing for timing in timings if timing.seconds_per_token <= _MAYBE_AS_CHEAP * least]


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
_MAYBE_AS_CHEAP = 1.2
"""As far as two measurements of the same differ where the machine is busy."""
_CHEAPEST_DOUBLE = 1.8
"""Twice the tokens take at least so many times as long, once a step is one that may be too long."""
