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
    """The sampling parameters of one batch as arrays. B rows, V ids in the vocabulary."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = tuple(rows)
        specs = [row.spec for row in rows]
        self._all_greedy = all(spec.temperature == 0 for spec in specs)
        self._filters = any(_filters(spec) for spec in specs)
        self._has_min_tokens = any(spec.min_tokens for spec in specs)
        if self._all_greedy:
            return
        self._greedy = mx.array([spec.temperature == 0 for spec in specs])  # (B,)
        self._temperature = mx.array([[spec.temperature or 1.0] for spec in specs])  # (B, 1)
        self._top_k = mx.array([[spec.top_k or _NO_TOP_K] for spec in specs])  # (B, 1)
        self._top_p = mx.array([[spec.top_p] for spec in specs])  # (B, 1)
        self._min_p = mx.array([[spec.min_p] for spec in specs])  # (B, 1)

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
        draws = [[uniform(row.spec.seed, row.scheduled_position)] for row in self._rows]
        probs = mx.softmax(logits.astype(mx.float32) / self._temperature, axis=-1)  # (B, V)
        sample = self._sample_filtered if self._filters else _inverse_transform
        return mx.where(self._greedy, best, sample(probs, mx.array(draws)))

    def _sample_filtered(self, probs: mx.array, draws: mx.array) -> mx.array:
        """Sample from what min_p, top_k and top_p leave of `probs` (B, V), with `draws` (B, 1) in (0, 1).

        With the probabilities sorted in descending order each filter keeps a prefix, so one cumulative sum
        serves all three and the draw.
        """
        order = mx.argsort(-probs, axis=-1)  # (B, V)
        ranked = mx.take_along_axis(probs, order, axis=-1)  # (B, V), descending
        rank = mx.arange(ranked.shape[-1])[None]  # (1, V)
        ranked = mx.where((rank < self._top_k) & (ranked >= self._min_p * ranked[:, :1]), ranked, 0)
        below = mx.cumsum(ranked, axis=-1) - ranked  # (B, V): probability of all ids ranked before
        ranked = mx.where(below < self._top_p * ranked.sum(axis=-1, keepdims=True), ranked, 0)
        choice = _inverse_transform(ranked, draws)  # (B,) ranks
        return mx.take_along_axis(order, choice[:, None], axis=-1).squeeze(-1)

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


_NO_TOP_K = 1 << 30


def _filters(spec: RowSpec) -> bool:
    return spec.temperature > 0 and (spec.top_k > 0 or spec.top_p < 1 or spec.min_p > 0)


def _inverse_transform(weights: mx.array, draws: mx.array) -> mx.array:
    """The index at which the running sum of `weights` (B, V) passes `draws` (B, 1) times its total: (B,)."""
    running = mx.cumsum(weights, axis=-1)  # (B, V)
    passed = running > draws * running[:, -1:]
    # argmax finds the first true; a true one exists since draws < 1, and rounding can't pick a zero weight
    # because the sum does not grow there.
    return mx.argmax(passed, axis=-1)
