"""Powers of two on a CPU: numpy takes a tenth of the time for them that mlx does, or less. What they are of has to be
computed first, which takes as long as some ten small operations, so this pays for many numbers alone."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

PER_LOG_2 = 1 / math.log(2)
"""A power of e is one of 2 whose exponent is so many times as high."""

_LOG_2 = np.float32(math.log(2))

MANY = 1 << 14
"""From so many numbers on it pays."""


def power_of_two(x: mx.array) -> mx.array:
    """`2 ** x`, which may take the place of `x` in memory: what is given comes fresh from some arithmetic, and the
    caller has nothing else to do with it."""
    if x.size < MANY or x.dtype != mx.float32:
        return mx.power(2, x)
    try:
        mx.eval(x)
    except ValueError:  # MLX is compiling a function: there are no numbers yet
        return mx.power(2, x)
    numbers = np.array(x, copy=False)
    if not numbers.flags.forc:  # some of them may be at the same place
        return mx.power(2, x)
    powers_in_place(numbers)
    return x


def powers_in_place(exponents: NDArray[np.float32]) -> NDArray[np.float32]:
    """`2 ** x` in the place of each x, by powers of e: without AVX-512 numpy takes half as long for these. What `x` has
    more of than float32 keeps is missing in the power, so it is off by `|x|` roundings, where it is next to nothing."""
    with np.errstate(all="ignore"):
        return np.exp(np.multiply(exponents, _LOG_2, out=exponents), out=exponents)
