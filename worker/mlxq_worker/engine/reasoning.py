"""The part of an answer in which a model thinks before it answers: where it begins and ends, by token ids.

Stop strings, grammars and the split of the finished answer all ask the same `ReasoningState`, so they agree on every
token. Plain Python; knows no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasoning:
    """How a row's reasoning part is marked. With `is_open` the prompt has opened it already; otherwise the answer
    may begin with `start_ids`, and if it does not there is none. `end_ids` closes it. Neither is empty."""

    start_ids: tuple[int, ...]
    end_ids: tuple[int, ...]
    is_open: bool


class ReasoningState:
    """Follows one answer token by token.

    `num_tokens` counts the tokens of the reasoning part so far, both markers included.
    """

    __slots__ = ("_ending", "_reasoning", "_starting", "is_inside", "num_tokens")

    def __init__(self, reasoning: Reasoning) -> None:
        self._reasoning = reasoning
        self._starting = not reasoning.is_open
        self._ending: list[int] = []
        self.is_inside = reasoning.is_open
        self.num_tokens = 0

    @classmethod
    def after(cls, reasoning: Reasoning, token_ids: Sequence[int]) -> ReasoningState:
        """The state once `token_ids` have come."""
        state = cls(reasoning)
        for token_id in token_ids:
            state.push(token_id)
        return state

    @property
    def next_start_id(self) -> int | None:
        """The id that would begin the reasoning part, or go on with its start marker."""
        return self._reasoning.start_ids[self.num_tokens] if self._starting else None

    @property
    def has_begun(self) -> bool:
        """Whether the answer has a reasoning part, or had one; not while its start marker is still coming."""
        return self.is_inside or (self.num_tokens > 0 and not self._starting)

    def push(self, token_id: int) -> bool:
        """Take the answer's next token; returns whether it belongs to the reasoning part."""
        if self._starting:
            return self._push_start(token_id)
        if self.is_inside:
            self._push_end(token_id)
            return True
        return False

    def _push_start(self, token_id: int) -> bool:
        if token_id != self.next_start_id:
            self._starting, self.num_tokens = False, 0
            return False
        self.num_tokens += 1
        self.is_inside = self.num_tokens == len(self._reasoning.start_ids)
        self._starting = not self.is_inside
        return True

    def _push_end(self, token_id: int) -> None:
        self.num_tokens += 1
        self._ending = [*self._ending, token_id][-len(self._reasoning.end_ids) :]
        self.is_inside = tuple(self._ending) != self._reasoning.end_ids
