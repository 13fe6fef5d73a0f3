"""Rotary positions on a CPU: mlx makes the same cosines and sines there for queries and keys in every layer, in twenty
small operations. Here they are made once a step."""

from __future__ import annotations

import math
from functools import lru_cache

import mlx.core as mx
import numpy as np

from mlxq_worker.engine.runners.on_cpu.quick import Unroute, once, route

_FEW_NUMBERS = 1 << 15
"""Up to so many, numbers are exchanged by a matrix product: one operation in place of four."""


def route_rotation() -> list[Unroute]:
    """Make MLX's RoPE go through here."""
    return route(mx.fast, "rope", _of_rows)


def _of_rows(
    x: mx.array,
    dims: int,
    *,
    traditional: bool,
    base: float | None,
    scale: float,
    offset: int | mx.array,
    freqs: mx.array | None = None,
) -> mx.array | None:
    """As `mx.fast.rope`, for rows of one token each, (N, heads, 1, D), at positions of their own (N,)."""
    is_row_by_row = isinstance(offset, mx.array) and offset.ndim == 1 and x.ndim == 4 and x.shape[2] == 1
    if not is_row_by_row or x.dtype != mx.float32:
        return None
    size = x.shape[3]
    if x.size <= _FEW_NUMBERS:
        cosines, sines = once(_laid_out, offset, size, dims, traditional, base, scale, freqs)
        return x * cosines + (x @ _exchange(size, dims, traditional)) * sines
    if traditional or dims < size:
        return None
    cosines, sines = once(_angles, offset, dims, base, scale, freqs)
    first, second = x[..., : dims // 2], x[..., dims // 2 :]
    return mx.concatenate([first * cosines - second * sines, first * sines + second * cosines], axis=-1)


def _angles(
    positions: mx.array, dims: int, base: float | None, scale: float, freqs: mx.array | None
) -> tuple[mx.array, mx.array]:
    """The cosines and sines by which pairs of numbers are rotated: (N, 1, 1, dims / 2) each."""
    if freqs is None:
        assert base is not None, "MLX asks for one of the two"
        inverse = mx.exp(mx.arange(0, -(dims // 2), -1, dtype=mx.float32) * (math.log(base) / (dims // 2)))
    else:
        inverse = 1 / freqs
    angles = (positions.astype(mx.float32) * scale)[:, None, None, None] * inverse
    return mx.cos(angles), mx.sin(angles)


def _laid_out(
    positions: mx.array,
    size: int,
    dims: int,
    traditional: bool,
    base: float | None,
    scale: float,
    freqs: mx.array | None,
) -> tuple[mx.array, mx.array]:
    """The same for all D numbers of a head, of which those behind `dims` stay as they are: (N, 1, 1, D) each."""
    cosines, sines = _angles(positions, dims, base, scale, freqs)
    if traditional:
        cosines, sines = mx.repeat(cosines, 2, axis=-1), mx.repeat(sines, 2, axis=-1)
    else:
        cosines, sines = mx.tile(cosines, (1, 1, 1, 2)), mx.tile(sines, (1, 1, 1, 2))
    if dims == size:
        return cosines, sines
    widths = [(0, 0), (0, 0), (0, 0), (0, size - dims)]
    return mx.pad(cosines, widths, constant_values=1.0), mx.pad(sines, widths)


@lru_cache(maxsize=16)
def _exchange(size: int, dims: int, traditional: bool) -> mx.array:
    """(D, D) what puts minus the second number of each pair in the first one's place, and the first in its."""
    exchange = np.zeros((size, size), dtype=np.float32)
    pairs = np.arange(dims).reshape(-1, 2) if traditional else np.arange(dims).reshape(2, -1).T
    first, second = pairs.T
    exchange[second, first], exchange[first, second] = -1, 1
    return mx.array(exchange)
