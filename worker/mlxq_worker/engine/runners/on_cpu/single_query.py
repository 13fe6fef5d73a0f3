"""Attention of one query to many keys on a CPU, through numpy: mlx multiplies a vector by a matrix there as it does two
matrices, which rearranges the whole matrix first, and takes four times as long as reading it once."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxq_worker.engine.runners.on_cpu.powers import powers_in_place

MANY = 1 << 18
"""From so many numbers in keys and values on it pays: what goes in has to be computed first."""


def pays(queries: mx.array, keys: mx.array) -> bool:
    """Whether queries (B, H, 1, D) of keys (B, H, T, D) had better go through here."""
    is_single = queries.shape[2] == 1 and queries.shape[1] == keys.shape[1]
    return is_single and 2 * keys.size >= MANY


def attend(
    queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | None, least: float
) -> tuple[mx.array, mx.array, mx.array]:
    """The parts of a softmax in units of log 2, all in float32.

    Args:
        queries: (B, H, 1, D), scaled.
        keys: (B, H, T, D), as `values`.
        mask: (B, 1, 1, T), true where a key counts.
        least: the highest score of a query that sees no key.

    Returns:
        The values weighted by 2 to the power of their scores less the highest one (B, H, 1, D); that score, and the sum
        of the weights, (B, H, 1, 1) each.
    """
    mx.eval(queries, keys, values, *([] if mask is None else [mask]))
    with np.errstate(all="ignore"):
        scores = _numbers(queries) @ _numbers(keys).swapaxes(-1, -2)  # (B, H, 1, T)
        if mask is not None:
            np.copyto(scores, -np.inf, where=~_numbers(mask))
        peak = np.maximum(scores.max(axis=-1, keepdims=True), np.float32(least))
        weights = powers_in_place(np.subtract(scores, peak, out=scores))
        weighted, total = weights @ _numbers(values), weights.sum(axis=-1, keepdims=True)
    return mx.array(weighted), mx.array(peak), mx.array(total)


def _numbers(array: mx.array) -> NDArray[Any]:
    """What is in an array, and not a copy: to be let go before MLX writes there again."""
    return np.array(array, copy=False)
