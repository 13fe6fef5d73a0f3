"""Beam search over numbers: which hypotheses go on, which are finished, and when no better one can come.

Does what Hugging Face transformers' beam search does (`GenerationMixin._beam_search` of transformers 5.23,
`src/transformers/generation/utils.py`), for one prompt and without its padding. Plain Python; where the log
probabilities come from and where the keys and values lie is `beam_group`' and the runner's business.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from mlxq.contract import Beam

Continuations = Sequence[tuple[int, float]]
"""The most probable ids that may follow a hypothesis, with their log probabilities, falling."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """Generated tokens, the sum of their log probabilities, and which of the hypotheses before they go on from: its
    index in `BeamSearch.running` as it was then."""

    token_ids: tuple[int, ...]
    logprob: float
    parent: int = 0

    def score(self, length_penalty: float) -> float:
        """The log probability, divided by the number of tokens (the end token is one) to a power; 0 for no tokens."""
        length = len(self.token_ids)
        return self.logprob * _share(length, length_penalty) if length else 0.0


class BeamSearch:
    """The hypotheses of one search. `running` go on and `finished` are the best complete ones, by falling probability
    and by falling score; there are never more than `beam.width` of either.

    Args:
        end_ids: ids each of which ends a hypothesis.
        limit: the number of tokens at which a hypothesis is complete without one of them.
        min_tokens: how many tokens a hypothesis has at least before one of them.
    """

    def __init__(self, beam: Beam, *, end_ids: frozenset[int], limit: int, min_tokens: int = 0) -> None:
        self._beam = beam
        self._end_ids = end_ids
        self._limit = limit
        self._min_tokens = min_tokens
        self.running = [Hypothesis((), 0.0)]
        self.finished: list[Hypothesis] = []

    def __repr__(self) -> str:
        return f"BeamSearch({len(self.running)} running, {len(self.finished)}/{self._beam.width} finished)"

    @property
    def num_continuations(self) -> int:
        """How many continuations of each hypothesis `advance` needs: enough for `width` that run on, even if every end
        id is more probable than they are."""
        return self._beam.width + len(self._end_ids)

    @property
    def is_over(self) -> bool:
        """Whether nothing better is to be expected, by `early_stopping` (`_beam_search_has_unfinished_sequences` and
        `_check_early_stop_heuristic`)."""
        if not self.running:
            return True
        if len(self.finished) < self._beam.width:
            return False
        return self._beam.early_stopping is True or self._best_to_come() <= self.score(self.finished[-1])

    def score(self, hypothesis: Hypothesis) -> float:
        """What hypotheses are compared by."""
        return hypothesis.score(self._beam.length_penalty)

    def best(self, count: int) -> list[Hypothesis]:
        """The best finished hypotheses; where there are too few, running ones follow."""
        return [*self.finished, *sorted(self.running, key=self.score, reverse=True)][:count]

    def advance(self, continuations: Sequence[Continuations]) -> None:
        """Go on by one token.

        Of all continuations the `width` most probable are finished if they end; of those that don't end the `width`
        most probable run on (`_get_top_k_continuations`, `_update_finished_beams` and
        `_get_running_beams_for_next_iteration`).

        Args:
            continuations: `num_continuations` of each running hypothesis, or all there are.
        """
        width = self._beam.width
        followers = (self._followers(parent, ids) for parent, ids in enumerate(continuations))
        candidates = heapq.merge(*followers, key=lambda hypothesis: -hypothesis.logprob)
        first = list(islice(candidates, width))
        ending = [hypothesis for hypothesis in first if self._is_complete(hypothesis)]
        going_on = (hypothesis for hypothesis in chain(first, candidates) if not self._is_complete(hypothesis))
        self.running = list(islice(going_on, width))
        self.finished = sorted([*self.finished, *ending], key=self.score, reverse=True)[:width]

    def _followers(self, parent: int, continuations: Continuations) -> Iterator[Hypothesis]:
        hypothesis = self.running[parent]
        may_end = len(hypothesis.token_ids) >= self._min_tokens
        for token_id, logprob in continuations:
            if may_end or token_id not in self._end_ids:
                yield Hypothesis((*hypothesis.token_ids, token_id), hypothesis.logprob + logprob, parent)

    def _is_complete(self, hypothesis: Hypothesis) -> bool:
        return hypothesis.token_ids[-1] in self._end_ids or len(hypothesis.token_ids) >= self._limit

    def _best_to_come(self) -> float:
        """What the best running hypothesis could score: by its length now, or with "never" by the longest possible
        length if that is the more favourable."""
        best, penalty = self.running[0], self._beam.length_penalty
        reaches_limit = self._beam.early_stopping == "never" and penalty > 0
        return best.logprob * _share(self._limit if reaches_limit else len(best.token_ids), penalty)


def _share(length: int, penalty: float) -> float:
    """`length ** -penalty`, as near as a float with some room to spare comes to it."""
    return math.exp(min(max(-penalty * math.log(length), -_LARGEST_EXPONENT), _LARGEST_EXPONENT))


_LARGEST_EXPONENT = 690.0
