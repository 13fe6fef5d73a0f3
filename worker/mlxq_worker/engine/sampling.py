"""Picks one token per row from the batch's logits, every row by its own parameters, in array operations.

The parameters of all rows become arrays once per batch change. A row needs one random number per token (inverse
transform sampling), so nothing of vocabulary size is drawn or kept per row. Order as in vLLM
(`vllm/v1/sample/sampler.py`): log probabilities to report, `engine/processors`, temperature, min_p, top_k, top_p; each
works on what the one before left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from mlxq_worker.engine.logprobs import Scores, num_alternatives
from mlxq_worker.engine.processors import Processors
from mlxq_worker.engine.row import Row, RowError, RowSpec, TokenScores
from mlxq_worker.engine.uniform import uniform


@dataclass(frozen=True, slots=True)
class Tokens:
    """What came of a step, read: a token for each row, the scores of those that ask for them, and the rows that can't
    go on, whose tokens mean nothing."""

    token_ids: list[int]
    scores: dict[Row, TokenScores]
    errors: dict[Row, RowError]


NO_TOKENS = Tokens([], {}, {})


@dataclass(frozen=True, slots=True)
class Sampled:
    """The tokens of a step, on their way."""

    rows: tuple[Row, ...]
    tokens: mx.array  # (B,)
    peaks: mx.array  # (B,) each row's largest logit, NaN where it has one
    scores: dict[tuple[Row, ...], Scores]

    def start(self) -> None:
        """Have them computed."""
        mx.async_eval(self.tokens, self.peaks)
        for scores in self.scores.values():
            scores.start()

    def read(self) -> Tokens:
        """Wait for them."""
        token_ids, peaks = cast(list[int], self.tokens.tolist()), cast(list[float], self.peaks.tolist())
        scores = {
            row: score
            for rows, group in self.scores.items()
            for row, score in zip(rows, group.read([row.spec.num_logprobs or 0 for row in rows]), strict=True)
        }
        return Tokens(token_ids, scores, _errors(self.rows, peaks))


class Sampler:
    """Keeps, between steps, the arrays that the rows' parameters make, and what is known of each row.

    B rows, F of them filtered, P of them scored; V ids in the vocabulary.
    """

    def __init__(self) -> None:
        self._processors = Processors()
        self._choice = Choice(())
        self._take(())

    def samples_late(self, rows: tuple[Row, ...]) -> bool:
        """Whether `sample` has to wait until the tokens before have been committed."""
        if rows != self._rows:
            self._take(rows)
        return self._samples_late

    def sample(self, rows: tuple[Row, ...], logits: mx.array) -> Sampled:
        """Choose each row's token at its `scheduled_position`.

        Args:
            logits: (B, V), any float type.
        """
        if rows != self._rows:
            self._take(rows)
        processed = self._processors.apply(logits)
        tokens = self._choice.choose(processed).astype(mx.uint32)
        scores = {rows: Scores.of(logits[index], tokens[index], top) for rows, (index, top) in self._scored.items()}
        return Sampled(rows, tokens, largest(processed), scores)

    def _take(self, rows: tuple[Row, ...]) -> None:
        self._rows = rows
        self._samples_late = any(row.spec.is_sampled_late for row in rows)
        self._processors.take(rows)
        self._choice = Choice(rows)
        self._scored = dict(_scored_rows(rows))


def _scored_rows(rows: Sequence[Row]) -> Iterator[tuple[tuple[Row, ...], tuple[mx.array, int]]]:
    """The rows that ask for scores, those together that as many alternatives are looked for, with their indices (P,)
    and that number."""
    groups: dict[int, list[tuple[int, Row]]] = {}
    for index, row in enumerate(rows):
        if row.spec.num_logprobs is not None:
            groups.setdefault(num_alternatives(row.spec.num_logprobs), []).append((index, row))
    for num_top, group in groups.items():
        yield tuple(row for _, row in group), (mx.array([index for index, _ in group]), num_top)


class Choice:
    """Temperature, filters and draws of one batch as arrays."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = tuple(rows)
        specs = [row.spec for row in rows]
        self._all_greedy = all(spec.is_greedy for spec in specs)
        if self._all_greedy:
            return
        self._greedy = mx.array([spec.is_greedy for spec in specs])  # (B,)
        self._temperature = mx.array([[1.0 if spec.is_greedy else spec.temperature] for spec in specs])  # (B, 1)
        self._filter = Filter(specs) if any(map(is_filtered, specs)) else None

    def choose(self, logits: mx.array) -> mx.array:
        """(B, V) to (B,) token ids."""
        best = mx.argmax(logits, axis=-1)  # (B,)
        if self._all_greedy:
            return best
        draws = mx.array([[uniform(row.spec.seed, row.scheduled_position)] for row in self._rows])  # (B, 1)
        probs = mx.softmax(logits.astype(mx.float32) / self._temperature, axis=-1)  # (B, V)
        if self._filter:
            probs = self._filter.apply(probs)
        return mx.where(self._greedy, best, _inverse_transform(probs, draws))


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


def largest(logits: mx.array) -> mx.array:
    """Each row's largest logit: (B, V) to (B,). NaN if one of them is.

    In two stages, the first of which runs across columns: on a CPU a sixth of one stage's time.
    """
    num_rows, num_ids = logits.shape
    num_parts = math.gcd(num_ids, _LARGEST_PARTS)
    return logits.reshape(num_rows, num_parts, -1).max(axis=1).max(axis=-1)


_LARGEST_PARTS = 128


def _errors(rows: Sequence[Row], peaks: Sequence[float]) -> dict[Row, RowError]:
    """Rows that no token can be chosen for. A logit of +inf is one that overflowed, and as good as none."""
    return {
        row: "no_token_allowed" if peak == -math.inf else "nan_logits"
        for row, peak in zip(rows, peaks, strict=True)
        if not math.isfinite(peak)
    }
