"""The part of an answer in which a model thinks before it answers: where it begins and ends, token by token.

Stop strings, grammars and the split of the finished answer all ask the same `ReasoningState`, so they agree on every
token. Markers are token ids, or texts where the vocabulary has no tokens for them. Plain Python; knows no spelling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

_TEXT_WINDOW = 48
"""Tokens at the end of the answer among which a marker that is text is looked for: more than any has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextMarkers:
    """Markers that no token stands for. `decode` gives the text of ids."""

    start: str
    end: str
    decode: Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasoning:
    """How a row's reasoning part is marked.

    With `is_open` the prompt has opened it already; otherwise the answer may begin with one of `starts`, `blank_ids`
    before it, and if it does not there is no such part. Any of `ends` closes it. Each is a sequence of ids, none is
    empty. With `texts` the markers are those instead, however they are spelled in tokens, and `starts` is how the
    tokenizer spells the first.
    """

    starts: tuple[tuple[int, ...], ...] = ()
    ends: tuple[tuple[int, ...], ...] = ()
    is_open: bool
    blank_ids: frozenset[int] = frozenset()
    texts: TextMarkers | None = None


class ReasoningState:
    """Follows one answer token by token.

    `num_tokens` counts the tokens of the reasoning part so far, both markers and blanks before it included;
    `num_opening` those up to the end of its start marker, `num_closing` those of its end marker.
    """

    __slots__ = (
        "_begun",
        "_reasoning",
        "_recent",
        "_starting",
        "_widest",
        "is_inside",
        "num_closing",
        "num_opening",
        "num_tokens",
    )

    def __init__(self, reasoning: Reasoning) -> None:
        self._reasoning = reasoning
        self._starting = not reasoning.is_open
        self._begun: tuple[int, ...] = ()
        self._recent: list[int] = []
        self._widest = _TEXT_WINDOW if reasoning.texts else max(map(len, reasoning.ends), default=0)
        self.is_inside = reasoning.is_open
        self.num_tokens = 0
        self.num_opening = 0
        self.num_closing = 0

    @classmethod
    def after(cls, reasoning: Reasoning, token_ids: Sequence[int]) -> ReasoningState:
        """The state once `token_ids` have come."""
        state = cls(reasoning)
        for token_id in token_ids:
            state.push(token_id)
        return state

    @property
    def next_start_ids(self) -> frozenset[int]:
        """The ids that would begin the reasoning part, or go on with its start marker."""
        if not self._starting:
            return frozenset()
        place = len(self._begun)
        return frozenset(start[place] for start in self._reasoning.starts if start[:place] == self._begun)

    @property
    def is_starting(self) -> bool:
        """Whether the reasoning part may still begin: the answer has nothing yet but blanks and a part of a start
        marker."""
        return self._starting

    @property
    def has_begun(self) -> bool:
        """Whether the answer has a reasoning part, or had one; not while its start marker is still coming."""
        return self.is_inside or (self.num_tokens > 0 and not self._starting)

    def push(self, token_id: int) -> bool:
        """Take the answer's next token; returns whether it belongs to the reasoning part; blanks before it may."""
        if self._starting:
            return self._push_text_start(token_id) if self._reasoning.texts else self._push_start(token_id)
        if self.is_inside:
            self._push_end(token_id)
            return True
        return False

    def _push_start(self, token_id: int) -> bool:
        if not self._begun and token_id in self._reasoning.blank_ids:
            self.num_tokens += 1
            return True
        begun = (*self._begun, token_id)
        matching = [start for start in self._reasoning.starts if start[: len(begun)] == begun]
        if not matching:
            self._starting, self.num_tokens = False, 0
            return False
        self.num_tokens += 1
        self._begun = begun
        self._enter(begun in matching)
        return True

    def _push_text_start(self, token_id: int) -> bool:
        texts = self._reasoning.texts
        assert texts is not None
        self._begun = (*self._begun, token_id)
        text = texts.decode(self._begun).lstrip()
        if not text:
            self._begun = ()
        if not (text.startswith(texts.start) or texts.start.startswith(text)):
            self._starting, self.num_tokens = False, 0
            return False
        self.num_tokens += 1
        self._enter(text.startswith(texts.start))
        return True

    def _enter(self, is_complete: bool) -> None:
        self.is_inside = is_complete
        self._starting = not is_complete
        if is_complete:
            self.num_opening = self.num_tokens

    def _push_end(self, token_id: int) -> None:
        self.num_tokens += 1
        self._recent = [*self._recent, token_id][-self._widest :]
        texts = self._reasoning.texts
        if texts:
            self.is_inside = texts.end not in texts.decode(self._recent)
            return
        closing = [end for end in self._reasoning.ends if tuple(self._recent[-len(end) :]) == end]
        if closing:
            self.is_inside = False
            self.num_closing = max(map(len, closing))
