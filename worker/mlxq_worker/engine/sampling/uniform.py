"""The random number that one row uses at one token position: a pure function of (seed, position).

A generator with state would make what a row samples depend on its neighbours, on the step at which it joined, and
on the device. A counter-based hash does not: SplitMix64's output function (Steele, Lea and Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014) over a counter that starts at the hashed seed.
"""

from __future__ import annotations

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def uniform(seed: int, position: int) -> float:
    """A number in the open interval (0, 1), exactly representable in float32.

    Args:
        seed: the row's seed, any integer; taken modulo 2**64.
        position: 0-based index of the token among the row's generated tokens.
    """
    return between_0_and_1(_mix(_mix(seed & _MASK) + (position + 1) * _GOLDEN))


def between_0_and_1(bits: int) -> float:
    """64 random bits as a number in the open interval (0, 1), exactly representable in float32."""
    # 23 random bits and a half: never 0 and never 1, also after rounding to float32's 24-bit significand.
    return ((bits >> 41) + 0.5) / (1 << 23)


def _mix(z: int) -> int:
    z &= _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
