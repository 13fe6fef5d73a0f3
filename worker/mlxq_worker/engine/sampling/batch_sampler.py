"""Picks one token per row from the batch's logits, every row by its own parameters, in array operations.

The order is that of vLLM's `vllm/v1/sample/sampler.py`: log probabilities to report (`logprobs`), what requests
do to logits (`processors`), the choice (`token_sampler`). The parameters of all rows become arrays once per
batch change. A row that no token can be chosen for is told from the others here, and ends by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from mlxq_worker.engine.api import RowError, TokenScores
from mlxq_worker.engine.rows.row import Row
from mlxq_worker.engine.sampling.logprobs import Scores, num_alternatives
from mlxq_worker.engine.sampling.processors import Processors
from mlxq_worker.engine.sampling.token_sampler import TokenSampler


@dataclass(frozen=True, slots=True)
class Tokens:
    """What came of a step, read: a token for each row, the scores of those that ask for them, and the rows that can't
    go on, whose tokens mean nothing."""

    token_ids: list[int]
    scores: dict[Row, TokenScores]
    errors: dict[Row, RowError]


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
            for row, score in zip(rows, _read(rows, group), strict=True)
        }
        return Tokens(token_ids, scores, _errors(self.rows, peaks))


class BatchSampler:
    """Keeps, between steps, the arrays that the rows' parameters make, and what is known of each row.

    B rows, P of them scored; V ids in the vocabulary.
    """

    def __init__(self) -> None:
        self._processors = Processors()
        self._token_sampler = TokenSampler(())
        self._set_rows(())

    def samples_late(self, rows: tuple[Row, ...]) -> bool:
        """Whether `sample` has to wait until the tokens before have been committed."""
        if rows != self._rows:
            self._set_rows(rows)
        return self._samples_late

    def sample(self, rows: tuple[Row, ...], logits: mx.array) -> Sampled:
        """Choose each row's token at its `scheduled_position`.

        Args:
            logits: (B, V), any float type.
        """
        if rows != self._rows:
            self._set_rows(rows)
        processed = self._processors.apply(logits)
        tokens, peaks = self._token_sampler.choose(processed)
        scores = {
            rows: Scores.of(logits[index], tokens[index], top, asked_ids)
            for rows, (index, top, asked_ids) in self._scored.items()
        }
        return Sampled(rows, tokens, peaks, scores)

    def _set_rows(self, rows: tuple[Row, ...]) -> None:
        self._rows = rows
        self._samples_late = any(row.spec.is_sampled_late for row in rows)
        self._processors.set_rows(rows)
        self._token_sampler = TokenSampler(rows)
        self._scored = dict(_scored_rows(rows))


def _read(rows: Sequence[Row], scores: Scores) -> list[TokenScores]:
    specs = [row.spec for row in rows]
    return scores.read([spec.num_logprobs or 0 for spec in specs], [spec.logprob_token_ids for spec in specs])


def _scored_rows(rows: Sequence[Row]) -> Iterator[tuple[tuple[Row, ...], tuple[mx.array, int, mx.array]]]:
    """The rows that ask for scores, those together that as many alternatives are looked for, with their indices (P,),
    that number, and the ids that they ask for (P, A), filled up with zeros."""
    groups: dict[int, list[tuple[int, Row]]] = {}
    for index, row in enumerate(rows):
        if row.spec.num_logprobs is not None:
            groups.setdefault(num_alternatives(row.spec.num_logprobs), []).append((index, row))
    for num_top, group in groups.items():
        asked = [row.spec.logprob_token_ids for _, row in group]
        width = max(map(len, asked))
        asked_ids = mx.array([[*ids, *[0] * (width - len(ids))] for ids in asked], dtype=mx.uint32)
        asked_ids = asked_ids.reshape(len(group), width)
        yield tuple(row for _, row in group), (mx.array([index for index, _ in group]), num_top, asked_ids)


def _errors(rows: Sequence[Row], peaks: Sequence[float]) -> dict[Row, RowError]:
    """Rows that no token can be chosen for. A logit of +inf is one that overflowed, and as good as none."""
    if all(map(math.isfinite, peaks)):
        return {}
    return {
        row: "no_token_allowed" if peak == -math.inf else "nan_logits"
        for row, peak in zip(rows, peaks, strict=True)
        if not math.isfinite(peak)
    }
