"""Chooses a token from each row's logits by its temperature, min_p, top_k, top_p and seed, all rows at once.

Only one row's numbers decide about its token, by sums and comparisons that are the same in any company. Temperature,
min_p, top_k, top_p follow one another as in vLLM (`vllm/v1/sample/sampler.py`), each working on what the one before
left. A draw is one number per row (inverse transform sampling), so nothing of vocabulary size is drawn. What logits are
before that is the business of `processors`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import mlx.core as mx

from mlxq_worker.engine.api import RowSpec
from mlxq_worker.engine.kvcache import device
from mlxq_worker.engine.rows.row import Row
from mlxq_worker.engine.sampling import on_gpu
from mlxq_worker.engine.sampling.uniform import Uniform

_BLOCK = 32
"""Rows are looked at in blocks of this many ids, and then only at the block that matters."""
MAX_RANKED = 256
"""Up to this top_k the best ids are picked out and ranked: on a CPU a sixth to a tenth of what all ids would take."""
_NO_TOP_K = 1 << 30
_MAX_SUMMED_AT_ONCE = 4096
"""Up to here one long sum takes less than the further operations that two short ones need."""
_LARGEST_DRAW = 1 - 2**-24
_MAX_SORTED_ON_CPU = 8192
_ONE_AS_BITS = 0x3F800000
_LEAST_FACTOR = 2.0**-100
"""Rather than 0 in float32, for temperatures beyond it: times that, a forbidden token's -inf would be NaN."""
_LEAST_TOP_P = 2.0**-100
"""Rather than 0 in float32, which would leave not even the best id."""


class TokenSampler:
    """The sampling parameters of one batch as arrays. B rows, S of them sampled, the others greedy; V ids."""

    def __init__(self, rows: Sequence[Row]) -> None:
        sampled = [index for index, row in enumerate(rows) if not row.spec.is_greedy]
        self._rows = [rows[index] for index in sampled]
        specs = [row.spec for row in self._rows]
        self._uniform = Uniform([spec.seed for spec in specs])
        self._index = None if len(sampled) == len(rows) else mx.array(sampled)  # (S,)
        self._per_log_2 = mx.array([[_per_log_2(spec)] for spec in specs])  # (S, 1)
        self._filter = Filter(specs) if any(map(_is_filtered, specs)) else None

    def choose(self, logits: mx.array) -> tuple[mx.array, mx.array]:
        """From logits (B, V), any float type, choose each row's token at its `scheduled_position`.

        Returns:
            (B,) token ids, and (B,) each row's largest logit, which is NaN if one of them is.
        """
        tokens, peaks = best_ids(logits)
        if self._rows and self._index is None:
            tokens = self._draw(logits, peaks)
        elif self._rows:
            tokens[self._index] = self._draw(logits[self._index], peaks[self._index])
        return tokens, peaks

    def _draw(self, logits: mx.array, peaks: mx.array) -> mx.array:
        """Logits (S, V) and their largest (S,) to tokens (S,)."""
        draws = mx.array(self._uniform.at([row.scheduled_position for row in self._rows])[:, None])  # (S, 1)
        if device.is_gpu():
            weights = on_gpu.weigh(logits, peaks[:, None], self._per_log_2)
            return on_gpu.draw_ids(self._filter.apply_on_gpu(weights) if self._filter else weights, draws)
        # 2 ** x: on a CPU mlx's exp takes three to four times as long. The best id's weight is 1.
        weights = mx.power(2, (logits.astype(mx.float32) - peaks[:, None]) * self._per_log_2)  # (S, V)
        if self._filter:
            weights = self._filter.apply(weights)
        return draw_ids(weights, draws)


def _per_log_2(spec: RowSpec) -> float:
    """What turns a logit into a power of two."""
    return max(1 / (math.log(2) * spec.temperature), _LEAST_FACTOR)


def _is_filtered(spec: RowSpec) -> bool:
    """Whether a sampled row samples from less than the whole distribution."""
    return spec.top_k > 0 or spec.top_p < 1 or spec.min_p > 0


class Filter:
    """min_p, top_k and top_p of the rows that use them; the others' weights are not even ranked.

    Each filter keeps the heaviest ids, so all three come down to one least weight for each row, and ids that weigh
    exactly as much as the last one kept are kept with it. min_p says that weight itself. For the other two the best
    ids are ranked, if top_k says that a few are enough; else all are, or it is searched for where that takes too long.
    S rows, those of a batch that are sampled.
    """

    def __init__(self, specs: Sequence[RowSpec]) -> None:
        self._min_p = mx.array([[spec.min_p] for spec in specs])  # (S, 1)
        ranked = [index for index, spec in enumerate(specs) if 0 < spec.top_k <= MAX_RANKED]
        others = [
            index for index, spec in enumerate(specs) if spec.top_k > MAX_RANKED or (spec.top_p < 1 and not spec.top_k)
        ]
        self._has_min_p = any(spec.min_p > 0 for spec in specs)
        self._ranked = Cut(ranked, specs) if ranked else None
        self._others = Cut(others, specs) if others else None
        self._sorted = Cut(sorted(ranked + others), specs) if ranked or others else None

    def apply(self, weights: mx.array) -> mx.array:
        """Set to zero what the filters drop of `weights` (S, V), the largest of which is 1 in each row."""
        floor = mx.array(self._min_p)  # (S, 1)
        if cut := self._ranked:
            floor[cut.index] = least_by_rank(cut.own(weights), floor[cut.index], cut, MAX_RANKED)
        if cut := self._others:
            own = cut.own(weights)
            if searches(own.shape[-1]):
                floor[cut.index] = least_by_search(own, floor[cut.index], cut)
            else:
                floor[cut.index] = least_by_rank(own, floor[cut.index], cut, own.shape[-1])
        return weights * (weights >= floor)

    def apply_on_gpu(self, weights: mx.array) -> mx.array:
        """As `apply`, where all ids are best sorted."""
        floor = self._min_p
        if cut := self._sorted:
            own_floor = floor if cut.is_whole else floor[cut.index]
            first_kept = cut.first_kept(weights.shape[-1]) if cut.has_top_k else None
            least = on_gpu.least_by_sort(cut.own(weights), own_floor, first_kept, cut.top_p, has_floor=self._has_min_p)
            floor = least if cut.is_whole else _replaced(floor, cut.index, least)
        return on_gpu.at_least(weights, floor)


class Cut:
    """top_k and top_p of some of the sampled rows, G of them, as arrays."""

    def __init__(self, index: Sequence[int], specs: Sequence[RowSpec]) -> None:
        own = [specs[each] for each in index]
        self.index = mx.array(list(index))  # (G,)
        self.top_k = mx.array([[spec.top_k or _NO_TOP_K] for spec in own])  # (G, 1)
        self.top_p = mx.array(
            [[max(spec.top_p, _LEAST_TOP_P) if spec.top_p < 1 else math.inf] for spec in own]
        )  # (G, 1)
        self.has_top_k = any(spec.top_k for spec in own)
        self.has_top_p = any(spec.top_p < 1 for spec in own)
        self.is_whole = len(own) == len(specs)
        self._first_kept: mx.array | None = None

    def first_kept(self, num_ids: int) -> mx.array:
        """Where, of all ids in rising order, those begin that top_k keeps: (G, 1)."""
        if self._first_kept is None:
            self._first_kept = mx.maximum(num_ids - self.top_k, 0)
            mx.eval(self._first_kept)
        return self._first_kept

    def own(self, weights: mx.array) -> mx.array:
        """(S, V) to (G, V)."""
        return weights if self.is_whole else weights[self.index]


def _replaced(values: mx.array, index: mx.array, others: mx.array) -> mx.array:
    """A copy of `values` (S, 1) with `others` (G, 1) at `index` (G,)."""
    copied = mx.array(values)
    copied[index] = others
    return copied


def searches(num_ids: int) -> bool:
    """Whether least weights are searched for rather than found by sorting: mlx sorts slowly on CPUs."""
    return num_ids > _MAX_SORTED_ON_CPU and not device.is_gpu()


def least_by_rank(weights: mx.array, floor: mx.array, cut: Cut, num_ranked: int) -> mx.array:
    """The least weights (G, 1), not below `floor` (G, 1), that top_k and then top_p keep of `weights` (G, V), where
    they are among the `num_ranked` heaviest."""
    # Floats that aren't negative are ordered as their bits are, which compare twice as fast.
    best = -weights.view(mx.int32)
    if num_ranked < weights.shape[-1]:
        best = mx.partition(best, num_ranked - 1, axis=-1)[:, :num_ranked]
    ranked = (-mx.sort(best, axis=-1)).view(mx.float32)  # (G, R), falling
    if cut.has_top_k:
        floor = mx.maximum(floor, mx.take_along_axis(ranked, mx.minimum(cut.top_k, ranked.shape[-1]) - 1, axis=-1))
    before = mx.cumsum(ranked, axis=-1) - ranked  # (G, R): the weight of all ids that are heavier
    kept = before < cut.top_p * _sums(weights * (weights >= floor)) if cut.has_top_p else before >= 0
    return mx.where(kept & (ranked >= floor), ranked, mx.inf).min(axis=-1, keepdims=True)


def least_by_search(weights: mx.array, floor: mx.array, cut: Cut) -> mx.array:
    """As `least_by_rank`, without ranking anything."""
    if cut.has_top_k:
        floor = mx.maximum(floor, _least_below(cut.top_k, weights, lambda heavier: heavier.astype(mx.float32)))
    if cut.has_top_p:
        limit = cut.top_p * _sums(weights * (weights >= floor))
        floor = mx.maximum(floor, _least_below(limit, weights, lambda heavier: heavier * weights))
    return floor


def _least_below(limit: mx.array, weights: mx.array, counted: Callable[[mx.array], mx.array]) -> mx.array:
    """The least number such that what is heavier counts for less than `limit` (G, 1): (G, 1). It is one of the weights,
    or 0.

    Bisects the bits of floats from 0 to 1, which are ordered as the floats are.

    Args:
        counted: which of `weights` (G, V) are heavier, as booleans, to what each counts for.
    """
    low, high = mx.zeros(limit.shape, dtype=mx.int32), mx.full(limit.shape, _ONE_AS_BITS, dtype=mx.int32)
    for _ in range(_ONE_AS_BITS.bit_length()):
        middle = (low + high) >> 1
        is_enough = _sums(counted(weights > middle.view(mx.float32))) < limit
        low, high = mx.where(is_enough, low, middle + 1), mx.where(is_enough, middle, high)
    return high.view(mx.float32)


def _sums(values: mx.array) -> mx.array:
    """Row by row: (G, V) to (G, 1)."""
    return _in_blocks(values).sum(axis=-1).sum(axis=-1, keepdims=True)


def best_ids(logits: mx.array) -> tuple[mx.array, mx.array]:
    """Each row's largest of logits (B, V): the first id that has it (B,), and the logit itself (B,), NaN if one is."""
    if device.is_gpu():
        return mx.argmax(logits, axis=-1), logits.max(axis=-1)
    blocks = _in_blocks(logits)
    largest = blocks.max(axis=-1)  # (B, n)
    block = mx.argmax(largest, axis=-1)  # (B,)
    return _id_in(block, mx.argmax(_taken(blocks, block), axis=-1), blocks), largest.max(axis=-1)


def draw_ids(weights: mx.array, draws: mx.array) -> mx.array:
    """The ids at which the running sums of `weights` (B, V) pass `draws` (B, 1) times their totals: (B,)."""
    if weights.shape[-1] <= _MAX_SUMMED_AT_ONCE:
        return _passed(weights, draws)[0]
    blocks = _in_blocks(weights)
    block, rest = _passed(blocks.sum(axis=-1), draws)
    within, _ = _passed(_taken(blocks, block), rest)
    return _id_in(block, within, blocks)


def _passed(weights: mx.array, draws: mx.array) -> tuple[mx.array, mx.array]:
    """The index (B,) at which the running sum of `weights` (B, n) passes `draws` (B, 1), in [0, 1), times its total,
    and how far into that weight it is, in [0, 1) again (B, 1).

    Weights of zero are never chosen, though a sum that is computed in parallel may grow over them by rounding.
    """
    running = mx.where(weights > 0, mx.cumsum(weights, axis=-1), 0)
    goal = draws * running.max(axis=-1, keepdims=True)
    index = mx.argmax(running > goal, axis=-1)  # the first true; one is, since draws < 1
    own = mx.take_along_axis(weights, index[:, None], axis=-1)
    before = mx.take_along_axis(running, index[:, None], axis=-1) - own
    return index, mx.clip((goal - before) / own, 0, _LARGEST_DRAW)


def _in_blocks(values: mx.array) -> mx.array:
    """(B, V) to (B, n, b): blocks of neighbours, as large as the vocabulary can be split up into."""
    num_rows, num_ids = values.shape
    return values.reshape(num_rows, -1, math.gcd(num_ids, _BLOCK))


def _taken(blocks: mx.array, block: mx.array) -> mx.array:
    """One block of each row: (B, n, b) and (B,) to (B, b)."""
    return mx.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]


def _id_in(block: mx.array, within: mx.array, blocks: mx.array) -> mx.array:
    return block * blocks.shape[-1] + within
