"""The random number that one row uses at one token position: a pure function of (seed, position).

A generator with state would make what a row samples depend on its neighbours, on the step at which it joined, and
on the device. A counter-based hash does not: SplitMix64's output function (Steele, Lea and Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014) over a counter that starts at the hashed seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.uint64]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_AHEAD = 16
"""Steps for which numbers are made at once: for as many rows as a batch has that takes hardly longer than for one."""
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def uniform(seed: int, position: int) -> float:
    """A number in the open interval (0, 1), exactly representable in float32.

    Args:
        seed: the row's seed, any integer; taken modulo 2**64.
        position: 0-based index of the token among the row's generated tokens.
    """
    return between_0_and_1(_mix(_mix(seed & _MASK) + (position + 1) * _GOLDEN))


class Uniform:
    """`uniform` of many rows at once, whose seeds are hashed once; those of the next positions are made beforehand."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._hashed = np.array([[_mix(seed & _MASK)] for seed in seeds], dtype=np.uint64)  # (S, 1)
        self._first: list[int] = []
        self._draws = np.empty((0, 0), np.float32)  # (S, _AHEAD) at the first positions and those behind them

    def at(self, positions: Sequence[int]) -> NDArray[np.float32]:
        """Each row's number at its position: (S,)."""
        later = positions[0] - self._first[0] if self._first else _AHEAD
        if not 0 <= later < _AHEAD or positions != [first + later for first in self._first]:
            self._first, later = list(positions), 0
            self._draws = self._of(np.array(positions, dtype=np.int64)[:, None] + np.arange(_AHEAD))
        return self._draws[:, later]

    def _of(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        return between_0_and_1(_mix(self._hashed + (positions + 1).astype(np.uint64) * _GOLDEN)).astype(np.float32)


@overload
def between_0_and_1(bits: int) -> float: ...
@overload
def between_0_and_1(bits: Numbers) -> NDArray[np.float64]: ...
def between_0_and_1(bits: int | Numbers) -> float | NDArray[np.float64]:
    """64 random bits as a number in the open interval (0, 1), exactly representable in float32; or many of those."""
    # 23 random bits and a half: never 0 and never 1, also after rounding to float32's 24-bit significand.
    return ((bits >> 41) + 0.5) / (1 << 23)


@overload
def _mix(z: int) -> int: ...
@overload
def _mix(z: Numbers) -> Numbers: ...
def _mix(z: Any) -> Any:
    z = z & _MASK  # an array's numbers have 64 bits anyway
    z = ((z ^ (z >> 30)) * _FIRST) & _MASK
    z = ((z ^ (z >> 27)) * _SECOND) & _MASK
    return z ^ (z >> 31)
