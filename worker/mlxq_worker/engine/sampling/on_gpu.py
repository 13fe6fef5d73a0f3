"""What `token_sampler` does to weights, for GPUs: in as few kernels as it takes, where a CPU had better do less work.

A GPU sorts all ids at once, and sums over the vocabulary in one pass; what is done to single numbers is compiled into
one kernel between two of those. The results are those of `token_sampler` but for rounding. Not run on Metal.
"""

from __future__ import annotations

from functools import partial

import mlx.core as mx


@partial(mx.compile, shapeless=True)
def weigh(logits: mx.array, peaks: mx.array, per_log_2: mx.array) -> mx.array:
    """Weights (S, V) of logits (S, V), whose largest are `peaks` (S, 1); the largest weight is 1."""
    return mx.power(2, (logits.astype(mx.float32) - peaks) * per_log_2)


@partial(mx.compile, shapeless=True)
def at_least(weights: mx.array, floor: mx.array) -> mx.array:
    """The weights (S, V) that are not below `floor` (S, 1); zero in the others' places."""
    return weights * (weights >= floor)


def least_by_sort(
    weights: mx.array, floor: mx.array, first_kept: mx.array | None, top_p: mx.array, *, has_floor: bool
) -> mx.array:
    """The least weights (G, 1), not below `floor` (G, 1), that top_k and then top_p keep of `weights` (G, V).

    Args:
        first_kept: (G, 1) where in rising order those begin that top_k keeps; `None` if it keeps all of every row.
        top_p: (G, 1), infinite where it keeps all.
        has_floor: whether any floor is above 0.
    """
    rising = mx.sort(weights, axis=-1)
    heavier = mx.cumsum(rising, axis=-1, reverse=True, inclusive=False)  # (G, V): the weight of all that come after
    if first_kept is not None:
        floor = mx.maximum(floor, mx.take_along_axis(rising, first_kept, axis=-1))
    if has_floor or first_kept is not None:
        total = at_least(rising, floor).sum(axis=-1, keepdims=True)
        return _kept(rising, heavier, floor, top_p, total, mx.zeros_like(total)).min(axis=-1, keepdims=True)
    return _kept(rising, heavier, floor, top_p, heavier[:, :1], rising[:, :1]).min(axis=-1, keepdims=True)


@partial(mx.compile, shapeless=True)
def _kept(
    rising: mx.array, heavier: mx.array, floor: mx.array, top_p: mx.array, total: mx.array, rest: mx.array
) -> mx.array:
    """The weights that are kept, infinity in the others' places; all together they weigh `total + rest` (G, 1)."""
    return mx.where((heavier < top_p * (total + rest)) & (rising >= floor), rising, mx.inf)


def draw_ids(weights: mx.array, draws: mx.array) -> mx.array:
    """The ids at which the running sums of `weights` (S, V) pass `draws` (S, 1) times their totals: (S,)."""
    running = _where_positive(weights, mx.cumsum(weights, axis=-1))
    return mx.argmax(_passed(running, draws, running.max(axis=-1, keepdims=True)), axis=-1)


@partial(mx.compile, shapeless=True)
def _where_positive(weights: mx.array, running: mx.array) -> mx.array:
    """Weights of zero are never drawn, though a sum that is computed in parallel may grow over them by rounding."""
    return mx.where(weights > 0, running, 0)


@partial(mx.compile, shapeless=True)
def _passed(running: mx.array, draws: mx.array, total: mx.array) -> mx.array:
    return running > draws * total
