"""Attention, whole or over a part of the keys that another part can be merged with: softmax taken in pieces.

The pieces are merged by their log-sum-exp, as in FlashAttention (Dao et al., 2022) and in shared-prefix decoding
(Juravsky et al., "Hydragen", 2024). Scores and sums are in float32, from the product on; scores are in units of log 2,
because on a CPU mlx's `exp` takes three to four times as long as `power`. Who attends to what is the caller's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Self

import mlx.core as mx

from mlxq_worker.engine.kvcache import device
from mlxq_worker.engine.runners.on_cpu import single_query
from mlxq_worker.engine.runners.on_cpu.powers import PER_LOG_2, power_of_two

_UNSEEN = -1e30
"""A score that no other is as low as, and still a number: minus infinity less itself is none."""

CAUSAL_BLOCK = 128
"""On a CPU as many queries at once see the keys up to the last one's: fewer of their scores are masked than in one."""


def attend(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    scale: float,
    mask: mx.array | Literal["causal"] | None = None,
    *,
    sliding: int | None = None,
    sinks: mx.array | None = None,
) -> mx.array:
    """Attention of `queries` (B, H, Q, D) to `keys` and `values` (B, H', T, D), each of whose H' heads serves H / H'
    heads of queries: (B, H, Q, D).

    Args:
        mask: (B, 1, 1, T), true where a key counts; with "causal" the queries are those of the last Q keys.
        sliding: with "causal" a query sees itself and so many keys less one before it.
        sinks: (H,) a score for each head that takes part in the softmax and brings no value.
    """
    if device.is_gpu():
        if sliding is not None and mask == "causal" and sliding < keys.shape[2]:
            mask = _causal(0, keys.shape[2] - queries.shape[2], keys.shape[2], sliding)
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask, sinks=sinks)
    if not isinstance(mask, str):
        return attend_in_part(queries, keys, values, scale, mask).with_sinks(sinks).result(queries.dtype)
    parts = attend_causally_in_parts(queries, keys, values, scale, sliding)
    blocks = [part.with_sinks(sinks).result(queries.dtype) for part in parts]
    return blocks[0] if len(blocks) == 1 else mx.concatenate(blocks, axis=2)


def is_fused() -> bool:
    """Whether `attend` is a single kernel here, which no attention in parts is as fast as."""
    return device.is_gpu()


def attend_causally_in_parts(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, sliding: int | None = None
) -> Iterator[Partial]:
    """Attention of the last keys' queries (B, H, Q, D), one block of queries after another.

    With `sliding` a query sees itself and so many keys less one before it.
    """
    num_queries, num_before = queries.shape[2], keys.shape[2] - queries.shape[2]
    for start in range(0, num_queries, CAUSAL_BLOCK):
        stop = min(start + CAUSAL_BLOCK, num_queries)
        end = num_before + stop
        first = 0 if sliding is None else max(0, num_before + start + 1 - sliding)
        mask = _causal(first, num_before + start, end, sliding)
        yield attend_in_part(queries[:, :, start:stop], keys[:, :, first:end], values[:, :, first:end], scale, mask)


def _causal(first: int, start: int, end: int, sliding: int | None) -> mx.array:
    """(end - start, end - first): which of the keys from `first` on the queries at `start` to `end` see."""
    keys, queries = mx.arange(first, end)[None], mx.arange(start, end)[:, None]
    seen = keys <= queries
    return seen if sliding is None or sliding >= end - first else seen & (keys > queries - sliding)


@dataclass(frozen=True, slots=True)
class Partial:
    """What some queries got from some of the keys: `weighted / total` is the attention to those alone.

    B rows, H heads of queries, Q queries a row, D numbers a head.
    """

    weighted: mx.array  # (B, H, Q, D): values weighted by 2 ** (score - peak)
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

    @classmethod
    def of_nothing(cls, num_rows: int, num_heads: int, size: int, num_queries: int = 1) -> Self:
        """Rows that saw no key."""
        column = (num_rows, num_heads, num_queries, 1)
        return cls(mx.zeros((*column[:3], size)), mx.full(column, -mx.inf), mx.zeros(column))

    def nothing(self, num_rows: int) -> Self:
        """Rows of this shape that saw no key."""
        _, num_heads, num_queries, size = self.weighted.shape
        return self.of_nothing(num_rows, num_heads, size, num_queries)

    def taken_apart(self) -> Partial:
        """Rows of Q queries as rows of one query."""
        return Partial(*map(taken_apart, (self.weighted, self.peak, self.total)))

    def merged(self, other: Partial) -> Partial:
        """The same queries over the keys of both; at least one of them saw a key."""
        peak = mx.maximum(self.peak, other.peak)
        own, others = mx.power(2, self.peak - peak), mx.power(2, other.peak - peak)
        return Partial(self.weighted * own + other.weighted * others, peak, self.total * own + other.total * others)

    def with_sinks(self, sinks: mx.array | None) -> Partial:
        """The same beside one more key a head, which scores `sinks` (H,) and whose value is zero; `None` for none."""
        if sinks is None:
            return self
        scores = (sinks.astype(mx.float32) * PER_LOG_2)[None, :, None, None]
        peak = mx.maximum(self.peak, scores)
        own = mx.power(2, self.peak - peak)
        return Partial(self.weighted * own, peak, self.total * own + mx.power(2, scores - peak))

    def result(self, dtype: mx.Dtype) -> mx.array:
        """The attention, (B, H, Q, D)."""
        return (self.weighted / self.total).astype(dtype)

    @property
    def arrays(self) -> tuple[mx.array, mx.array, mx.array]:
        """What makes it up."""
        return self.weighted, self.peak, self.total


def attention_of_both(own: Partial, other: Partial, sinks: mx.array | None, like: mx.array) -> mx.array:
    """Attention of the same queries to the keys of both parts and to sinks: (B, H, Q, D), in the dtype of `like`."""
    if not device.is_gpu():
        return own.merged(other).with_sinks(sinks).result(like.dtype)
    return _of_both(own.arrays, other.arrays, sinks, like)


# Each operation would be a kernel; compiled they are one or two, with sinks up to five.

_Arrays = tuple[mx.array, mx.array, mx.array]


@partial(mx.compile, shapeless=True)
def _of_both(own: _Arrays, other: _Arrays, sinks: mx.array | None, like: mx.array) -> mx.array:
    return Partial(*own).merged(Partial(*other)).with_sinks(sinks).result(like.dtype)


def _in_log_2(queries: mx.array, scale: float) -> mx.array:
    return queries.astype(mx.float32) * (scale * PER_LOG_2)


_compiled_in_log_2 = mx.compile(_in_log_2, shapeless=True)


@partial(mx.compile, shapeless=True)
def _weights(scores: mx.array, peak: mx.array) -> mx.array:
    return mx.power(2, scores - peak)


def taken_apart(rows: mx.array) -> mx.array:
    """Rows of Q queries as rows of one query: (B, H, Q, D) to (B * Q, H, 1, D)."""
    num_rows, num_heads, num_queries, size = rows.shape
    return rows.swapaxes(1, 2).reshape(num_rows * num_queries, num_heads, 1, size)


def attend_in_part(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | None = None
) -> Partial:
    """Attention of `queries` (B, H, Q, D) to some keys and their values, (B, H', T, D) each.

    `mask` (B, 1, 1, T) or (Q, T) is true where a key counts. A query for which none does counts for nothing once its
    part is merged with another.
    """
    num_rows, num_heads, num_queries, size = queries.shape
    num_kv_heads = keys.shape[1]
    # The heads that share a head of keys are further queries to it: (B, H', H / H' * Q, D).
    # In float32 before the product, as fused kernels sum: a score that is rounded to bfloat16 is off by up to 0.4 %.
    is_on_cpu = not device.is_gpu()
    scaled = (_in_log_2 if is_on_cpu else _compiled_in_log_2)(queries, scale)
    grouped = scaled.reshape(num_rows, num_kv_heads, -1, size)
    keys, values = keys.astype(mx.float32), values.astype(mx.float32)
    if is_on_cpu and single_query.pays(grouped, keys):
        return Partial(*single_query.attend(grouped, keys, values, mask, _UNSEEN))
    scores = grouped @ keys.swapaxes(-1, -2)  # (B, H', H / H' * Q, T)
    # On a CPU a power that underflows takes far longer than that of minus infinity.
    is_infinite = mask is not None and is_on_cpu
    if mask is not None:
        if mask.ndim == 2:
            mask = mx.tile(mask, (num_heads // num_kv_heads, 1))
        scores = mx.where(mask, scores, -mx.inf if is_infinite else _UNSEEN)
    peak = scores.max(axis=-1, keepdims=True)
    if is_infinite:
        peak = mx.maximum(peak, _UNSEEN)
    weights = power_of_two(scores - peak) if is_on_cpu else _weights(scores, peak)
    weighted = weights @ values
    shape = (num_rows, num_heads, num_queries, -1)
    return Partial(
        weighted.reshape(shape),
        peak.reshape(shape),
        weights.sum(axis=-1, keepdims=True).reshape(shape),
    )
