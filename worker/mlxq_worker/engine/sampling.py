"""Picks one token per row from the batch's logits, every row by its own parameters, in array operations.

The parameters of all rows become arrays once per batch change (`Sampler`). A row needs one random number per token
(inverse transform sampling), so nothing of vocabulary size is drawn or kept per row. Order of the filters as in
vLLM (`vllm/v1/sample/sampler.py`): temperature, min_p, top_k, top_p; each works on what the one before left.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlxq_worker.engine.row import Row, RowSpec
from mlxq_worker.engine.uniform import uniform


class Sampler:
    """The sampling parameters of one batch as arrays. B rows, F of them filtered; V ids in the vocabulary."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = tuple(rows)
        specs = [row.spec for row in rows]
        self._all_greedy = all(spec.is_greedy for spec in specs)
        self._has_min_tokens = any(spec.min_tokens for spec in specs)
        if self._all_greedy:
            return
        self._greedy = mx.array([spec.is_greedy for spec in specs])  # (B,)
        self._temperature = mx.array([[1.0 if spec.is_greedy else spec.temperature] for spec in specs])  # (B, 1)
        self._filter = Filter(specs) if any(map(is_filtered, specs)) else None

    def sample(self, logits: mx.array) -> mx.array:
        """Choose each row's token at its `scheduled_position`.

        Args:
            logits: (B, V), any float type.

        Returns:
            (B,) token ids, not evaluated.
        """
        if self._has_min_tokens:
            logits = self._mask_end_tokens(logits)
        best = mx.argmax(logits, axis=-1)  # (B,)
        if self._all_greedy:
            return best
        draws = mx.array([[uniform(row.spec.seed, row.scheduled_position)] for row in self._rows])  # (B, 1)
        probs = mx.softmax(logits.astype(mx.float32) / self._temperature, axis=-1)  # (B, V)
        if self._filter:
            probs = self._filter.apply(probs)
        return mx.where(self._greedy, best, _inverse_transform(probs, draws))

    def _mask_end_tokens(self, logits: mx.array) -> mx.array:
        cells = [
            (index, end_id)
            for index, row in enumerate(self._rows)
            if row.masks_end_tokens
            for end_id in row.spec.end_tokens
        ]
        if cells:
            row_index, end_id = (mx.array(column) for column in zip(*cells, strict=True))
            logits[row_index, end_id] = -mx.inf
        return logits


class Filter:
    """min_p, top_k and top_p of the rows that use them; the others' probabilities are not even sorted.

    Each filter keeps the most probable ids, so all three come down to one least probability for each row, and ids that
    are exactly as probable as the last one kept are kept with it.
    """

    def __init__(self, specs: Sequence[RowSpec]) -> None:
        filtered = [(index, spec) for index, spec in enumerate(specs) if is_filtered(spec)]
        self._index = mx.array([index for index, _ in filtered])  # (F,)
        self._top_k = mx.array([[spec.top_k or _NO_TOP_K] for _, spec in filtered])  # (F, 1)
        self._top_p = mx.array([[spec.top_p] for _, spec in filtered])  # (F, 1)
        self._min_p = mx.array([[spec.min_p] for _, spec in filtered])  # (F, 1)
        self._num_rows = len(specs)

    def apply(self, probs: mx.array) -> mx.array:
        """Set to zero what the filters drop of `probs` (B, V)."""
        floor = mx.zeros((self._num_rows, 1))
        floor[self._index] = self._least_kept(probs[self._index])
        return mx.where(probs >= floor, probs, 0)

    def _least_kept(self, probs: mx.array) -> mx.array:
        """(F, V) probabilities to (F, 1), the least one that the row's filters keep."""
        ranked = -mx.sort(-probs, axis=-1)  # (F, V), descending: each filter keeps a prefix
        rank = mx.arange(ranked.shape[-1])[None]  # (1, V)
        ranked = mx.where((rank < self._top_k) & (ranked >= self._min_p * ranked[:, :1]), ranked, 0)
        before = mx.cumsum(ranked, axis=-1) - ranked  # (F, V): probability of all ids ranked before
        kept = (ranked > 0) & ((before < self._top_p * ranked.sum(axis=-1, keepdims=True)) | (rank == 0))
        return mx.where(kept, ranked, mx.inf).min(axis=-1, keepdims=True)


_NO_TOP_K = 1 << 30


def is_filtered(spec: RowSpec) -> bool:
    """Whether a row samples from less than the whole distribution."""
    return not spec.is_greedy and (spec.top_k > 0 or spec.top_p < 1 or spec.min_p > 0)


def _inverse_transform(weights: mx.array, draws: mx.array) -> mx.array:
    """The index at which the running sum of `weights` (B, V) passes `draws` (B, 1) times its total: (B,).

    Ids of weight zero are left out, since a sum that is computed in parallel may grow over them by rounding.
    """
    running = mx.where(weights > 0, mx.cumsum(weights, axis=-1), 0)  # (B, V)
    passed = running > draws * running.max(axis=-1, keepdims=True)  # true somewhere, since draws < 1
    return mx.argmax(passed, axis=-1)  # the first true
