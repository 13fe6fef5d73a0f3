"""Attention over a part of the keys that another part can be merged with: softmax taken in pieces.

The pieces are merged by their log-sum-exp, as in FlashAttention (Dao et al., 2022) and in shared-prefix decoding
(Juravsky et al., "Hydragen", 2024). All sums are in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import mlx.core as mx


@dataclass(frozen=True, slots=True)
class Partial:
    """What some queries got from some of the keys: `weighted / total` is the attention to those alone.

    B rows, H heads of queries, Q queries a row, D numbers a head.
    """

    weighted: mx.array  # (B, H, Q, D): values weighted by exp(score - peak)
    peak: mx.array  # (B, H, Q, 1): the highest score
    total: mx.array  # (B, H, Q, 1): the sum of the weights

    def __getitem__(self, rows: mx.array) -> Partial:
        return Partial(self.weighted[rows], self.peak[rows], self.total[rows])

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Rows of several parts, one after another."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            mx.concatenate([part.weighted for part in parts]),
            mx.concatenate([part.peak for part in parts]),
            mx.concatenate([part.total for part in parts]),
        )

    def nothing(self, num_rows: int) -> Partial:
        """Rows of this shape that saw no key."""
        _, *shape = self.weighted.shape
        column = (num_rows, *shape[:-1], 1)
        return Partial(mx.zeros((num_rows, *shape)), mx.full(column, -mx.inf), mx.zeros(column))

    def taken_apart(self) -> Partial:
        """One row of Q queries as Q rows of one query."""
        return Partial(*(array[0].swapaxes(0, 1)[:, :, None] for array in (self.weighted, self.peak, self.total)))

    def merged(self, other: Partial) -> Partial:
        """The same queries over the keys of both; at least one of them saw a key."""
        peak = mx.maximum(self.peak, other.peak)
        own, others = mx.exp(self.peak - peak), mx.exp(other.peak - peak)
        return Partial(self.weighted * own + other.weighted * others, peak, self.total * own + other.total * others)

    def result(self, dtype: mx.Dtype) -> mx.array:
        """The attention, (B, H, Q, D)."""
        return (self.weighted / self.total).astype(dtype)


def attend_in_part(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | None = None
) -> Partial:
    """Attention of `queries` (B, H, Q, D) to `keys` and `values` (B, H', T, D), each of whose H' heads serves H / H'
    heads of queries; `mask` (B, 1, 1, T) is true where a key counts, and at least one does.
    """
    num_rows, num_heads, num_queries, size = queries.shape
    num_kv_heads = keys.shape[1]
    # The heads that share a head of keys are further queries to it: (B, H', H / H' * Q, D).
    grouped = (queries * scale).reshape(num_rows, num_kv_heads, -1, size)
    scores = (grouped @ keys.swapaxes(-1, -2)).astype(mx.float32)  # (B, H', H / H' * Q, T)
    if mask is not None:
        scores = mx.where(mask, scores, -mx.inf)
    peak = scores.max(axis=-1, keepdims=True)
    weights = mx.exp(scores - peak)
    weighted = weights.astype(values.dtype) @ values
    shape = (num_rows, num_heads, num_queries, -1)
    return Partial(
        weighted.astype(mx.float32).reshape(shape),
        peak.reshape(shape),
        weights.sum(axis=-1, keepdims=True).reshape(shape),
    )
