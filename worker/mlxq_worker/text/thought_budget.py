"""Closes a thought by force once it has had its tokens: vLLM's `thinking_token_budget`.

A constraint around the one that holds the answer, if there is one: inside the thought nothing is held until the budget
is used up, and then the end marker comes, token by token. Plain numpy; knows no grammar.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlxq_worker.engine.api import Constraint, Reasoning, ReasoningState, num_words


class ThoughtBudget:
    """The state of one row's thought.

    Args:
        max_tokens: how many tokens the thought may have, its markers aside.
        end_ids: the end marker, not empty.
        inner: what holds the answer behind the thought.
        vocab_size: how many ids the model has.
    """

    __slots__ = ("_end_ids", "_inner", "_max_tokens", "_num_forced", "_state", "_vocab_size")

    def __init__(
        self,
        reasoning: Reasoning,
        max_tokens: int,
        *,
        end_ids: Sequence[int],
        inner: Constraint | None,
        vocab_size: int,
    ) -> None:
        self._state = ReasoningState(reasoning)
        self._max_tokens = max_tokens
        self._end_ids = tuple(end_ids)
        self._inner = inner
        self._vocab_size = vocab_size
        self._num_forced = 0

    def allowed_ids(self) -> bytes:
        if self._is_used_up:
            return self._only(self._end_ids[self._num_forced])
        if self._inner is not None:
            return self._inner.allowed_ids()
        return np.full(num_words(self._vocab_size), 0xFFFFFFFF, dtype="<u4").tobytes()

    def advance(self, token_id: int) -> None:
        if self._is_used_up and token_id == self._end_ids[self._num_forced]:
            self._num_forced += 1
        self._state.push(token_id)
        if self._inner is not None:
            self._inner.advance(token_id)

    @property
    def is_complete(self) -> bool:
        return self._inner is None or self._inner.is_complete

    @property
    def _is_used_up(self) -> bool:
        """Whether the end marker is due, or on its way."""
        if not self._state.is_inside or self._num_forced == len(self._end_ids):
            return False
        return self._num_forced > 0 or self._state.num_tokens - self._state.num_opening >= self._max_tokens

    def _only(self, token_id: int) -> bytes:
        words = np.zeros(num_words(self._vocab_size), dtype="<u4")
        words[token_id // 32] = np.uint32(1 << token_id % 32)
        return words.tobytes()
