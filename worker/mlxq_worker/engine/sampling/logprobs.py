"""Log probabilities that are reported: of a chosen token, of the most probable ones, and of a prompt's own tokens.

They are those of the model's raw logits, before any request has its way with them (vLLM's `raw_logprobs`). Only rows
that ask are looked at, and nothing of vocabulary size is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlxq_worker.engine.api import TokenScores
from mlxq_worker.engine.rows.row import Row

MAX_TOP = 20
"""How many alternatives are looked for where a row asks for fewer: what is found must not depend on its company."""
LEAST_LOGPROB = -9999.0
"""What an impossible token is reported with, as in vLLM: JSON has no infinity."""

_POSITIONS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of P positions, each of whose tokens is known; not necessarily computed yet."""

    token_ids: mx.array  # (P,)
    logprobs: mx.array  # (P,)
    ranks: mx.array  # (P,) 1 is the most probable
    top_ids: mx.array  # (P, K), in no order
    top_logprobs: mx.array  # (P, K)
    asked_logprobs: mx.array  # (P, A)

    @classmethod
    def of(cls, logits: mx.array, token_ids: mx.array, num_top: int, asked_ids: mx.array | None = None) -> Scores:
        """Score tokens (P,) by logits (P, V), with `num_top` alternatives for each position, and the ids that are asked
        for there (P, A)."""
        logits = logits.astype(mx.float32)
        peak = logits.max(axis=-1, keepdims=True)
        # Through powers of two: on a CPU mlx's exp takes three to four times as long.
        normaliser = peak + mx.log(mx.power(2, (logits - peak) / math.log(2)).sum(axis=-1, keepdims=True))  # (P, 1)
        own = mx.take_along_axis(logits, token_ids[:, None], axis=-1)  # (P, 1)
        ranks = (logits > own).sum(axis=-1) + 1
        top_ids = _top_ids(logits, num_top) if num_top else mx.zeros((logits.shape[0], 0), dtype=mx.uint32)
        top_logprobs = mx.take_along_axis(logits, top_ids, axis=-1) - normaliser
        if asked_ids is None:
            asked_ids = mx.zeros((logits.shape[0], 0), dtype=mx.uint32)
        asked_logprobs = mx.take_along_axis(logits, asked_ids, axis=-1) - normaliser
        return cls(token_ids, (own - normaliser)[:, 0], ranks, top_ids, top_logprobs, asked_logprobs)

    def start(self) -> None:
        """Have them computed."""
        mx.async_eval(self.logprobs, self.ranks, self.top_ids, self.top_logprobs, self.asked_logprobs)

    def read(self, num_tops: Sequence[int], asked_ids: Sequence[Sequence[int]] | None = None) -> list[TokenScores]:
        """Wait for them; `num_tops` says how many alternatives each position wants, `asked_ids` which ids it asked
        for."""
        logprobs, tops, asked = (
            np.fmax(np.array(each), LEAST_LOGPROB) for each in (self.logprobs, self.top_logprobs, self.asked_logprobs)
        )
        top_ids = np.array(self.top_ids)
        falling = np.lexsort((top_ids, -tops))  # (P, K), of equals the smaller id first
        columns: Any = (
            self.token_ids,
            logprobs,
            self.ranks,
            np.take_along_axis(top_ids, falling, axis=-1),
            np.take_along_axis(tops, falling, axis=-1),
            asked,
        )
        return [
            TokenScores(
                token_id=token_id,
                logprob=logprob,
                rank=rank,
                top=tuple(zip(ids[:num], best[:num], strict=True)),
                asked=tuple(zip(wanted, found, strict=False)),  # shorter than the longest is filled up
            )
            for num, wanted, token_id, logprob, rank, ids, best, found in zip(
                num_tops,
                asked_ids or [()] * len(num_tops),
                *(column.tolist() for column in columns),
                strict=True,
            )
        ]


def score_chunk(row: Row, start: int, positions: mx.array, head: Callable[[mx.array], mx.array]) -> None:
    """Score the tokens of a row's prompt that follow some of its positions.

    Args:
        start: index of the first position in the prompt.
        positions: what the model made of each position, (P, ...); what lies behind the prompt's last token is ignored.
        head: makes logits (p, V) of some of them. A few at a time, and computed before the next are, so that the logits
            of a long prompt never stand in memory together.
    """
    num_top = row.spec.num_prompt_logprobs or 0
    num_found = num_alternatives(num_top)
    token_ids = row.spec.prompt_ids[start + 1 : start + 1 + len(positions)]
    for first in range(0, len(token_ids), _POSITIONS_AT_ONCE):
        targets = list(token_ids[first : first + _POSITIONS_AT_ONCE])
        scores = Scores.of(head(positions[first : first + len(targets)]), mx.array(targets), num_found)
        row.prompt_scores += scores.read([num_top] * len(targets))


def num_alternatives(num_top: int) -> int:
    """How many alternatives are looked for, for a row that asks for `num_top`."""
    return max(MAX_TOP, num_top) if num_top else 0


def _top_ids(logits: mx.array, num_top: int) -> mx.array:
    """The ids of the `num_top` best logits (P, V), or of all that there are, in no order: (P, K)."""
    num_top = min(num_top, logits.shape[-1])
    return mx.argpartition(-logits, kth=num_top - 1, axis=-1)[:, :num_top]
