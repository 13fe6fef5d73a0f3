"""Bit masks of ids that may come next, for the rows that have one, applied to the logits in one array operation.

A mask is little-endian 32-bit words, id `i` being bit `i % 32` of word `i // 32`, as grammar compilers write it. Where
there is Metal the bits are looked up by a kernel; elsewhere numpy unpacks them, which on a CPU takes a fiftieth of
shifting them in mlx.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np

from mlxq_worker.engine.constraint import Words, num_words


def words_of_ids(ids: Iterable[int], num_ids: int) -> Words:
    """A mask that lets `ids` through, in a vocabulary of `num_ids`: (W,)."""
    allowed = np.zeros((num_words(num_ids) * 32,), np.bool_)
    allowed[np.fromiter(ids, np.int64)] = True
    return np.packbits(allowed, bitorder="little").view(np.uint32)


def mask_logits(logits: mx.array, rows: Sequence[int], words: Words) -> mx.array:
    """Set to -inf what `words` (C, W) forbid in these C rows of `logits` (B, V)."""
    if mx.default_device() == mx.gpu and mx.metal.is_available():
        return _mask_on_metal(logits, rows, words)
    bits = np.unpackbits(words.view(np.uint8), axis=-1, count=logits.shape[1], bitorder="little")
    allowed = mx.array(bits.view(np.bool_))  # (C, V)
    if len(rows) == logits.shape[0]:
        return mx.where(allowed, logits, -mx.inf)
    index = mx.array(list(rows))
    logits[index] = mx.where(allowed, logits[index], -mx.inf)
    return logits


def _mask_on_metal(logits: mx.array, rows: Sequence[int], words: Words) -> mx.array:
    """As `llguidance.mlx` does it, for some rows of a batch. Not run on Metal."""
    mask_rows = np.full((logits.shape[0],), -1, np.int32)  # (B,) index into `words`, -1 without a mask
    mask_rows[list(rows)] = np.arange(len(rows))
    masked: mx.array = _kernel()(
        inputs=[logits, mx.array(mask_rows), mx.array(words)],
        template=[("T", logits.dtype)],
        grid=(logits.shape[1], logits.shape[0], 1),
        threadgroup=(256, 1, 1),
        output_shapes=[logits.shape],
        output_dtypes=[logits.dtype],
    )[0]
    return masked


@cache
def _kernel() -> Any:
    return mx.fast.metal_kernel(
        name="mask_logits",
        input_names=["logits", "mask_rows", "words"],
        output_names=["masked"],
        source="""
            uint id = thread_position_in_grid.x;
            uint row = thread_position_in_grid.y;
            uint cell = row * logits_shape[1] + id;
            int mask_row = mask_rows[row];
            bool allowed = mask_row < 0 || ((words[mask_row * words_shape[1] + id / 32] >> (id % 32)) & 1);
            masked[cell] = allowed ? logits[cell] : T(-INFINITY);
        """,
    )
