"""Attention of one query to many keys on a CPU, through numpy: mlx multiplies a vector by a matrix there as it does two
matrices, which rearranges the whole matrix first, and takes four times as long as reading it once. Where rows see far
less than there is, as in short windows and beside longer rows, each reads what it sees alone."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxq_worker.engine.runners.on_cpu.powers import powers_in_place

MANY = 1 << 18
"""From so many numbers in keys and values on it pays: what goes in has to be computed first."""
PER_ROW = 1 << 14
"""Reading so many numbers takes as long as a row's own two products take to start."""


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
        mask: (B, 1, 1, T), or (1, T) for all rows, true where a key counts.
        least: the highest score of a query that sees no key.

    Returns:
        The values weighted by 2 to the power of their scores less the highest one (B, H, 1, D); that score, and the sum
        of the weights, (B, H, 1, 1) each.
    """
    mx.eval(queries, keys, values, *([] if mask is None else [mask]))
    of_queries, of_keys, of_values = _numbers(queries), _numbers(keys).swapaxes(-1, -2), _numbers(values)
    together = [(slice(None), range(keys.shape[2]))]
    parts = (None if mask is None else _apart(_numbers(mask), keys.shape[0], 2 * keys.size)) or together
    width = max(len(seen) for _, seen in parts)
    scores = np.full((*queries.shape[:3], width), -np.inf, dtype=np.float32)  # each row's from what it sees first on
    weighted = np.empty((*queries.shape[:3], values.shape[3]), dtype=np.float32)
    with np.errstate(all="ignore"):
        for rows, seen in parts:
            keys_seen = of_keys[rows, ..., seen.start : seen.stop]
            np.matmul(of_queries[rows], keys_seen, out=scores[rows, ..., : len(seen)])
        if mask is not None and parts is together:
            np.copyto(scores, -np.inf, where=~_numbers(mask))
        peak = np.maximum(scores.max(axis=-1, keepdims=True), np.float32(least))
        weights = powers_in_place(np.subtract(scores, peak, out=scores))
        for rows, seen in parts:
            values_seen = of_values[rows, :, seen.start : seen.stop]
            np.matmul(weights[rows, ..., : len(seen)], values_seen, out=weighted[rows])
    return mx.array(weighted), mx.array(peak), mx.array(weights.sum(axis=-1, keepdims=True))


def _apart(mask: NDArray[np.bool_], num_rows: int, num_numbers: int) -> list[tuple[slice, range]] | None:
    """Each row and the columns that it sees; `None` where the rows had better read all that there is together,
    `num_numbers` in keys and values, or where what some row sees has gaps."""
    num_columns = mask.shape[-1]
    of_rows = np.broadcast_to(mask.reshape(-1, num_columns), (num_rows, num_columns))
    firsts = of_rows.argmax(axis=1)
    stops = num_columns - of_rows[:, ::-1].argmax(axis=1)
    num_seen = int((stops - firsts).sum())
    num_spared = num_numbers * (1 - num_seen / of_rows.size)
    if num_spared < PER_ROW * num_rows or np.count_nonzero(of_rows) < num_seen:
        return None
    ranges = map(range, firsts.tolist(), stops.tolist())
    return [(slice(row, row + 1), seen) for row, seen in enumerate(ranges)]


def _numbers(array: mx.array) -> NDArray[Any]:
    """What is in an array, and not a copy: to be let go before MLX writes there again."""
    return np.array(array, copy=False)
