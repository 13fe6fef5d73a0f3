"""Text as tokens arrive (`TextStream`) and stop strings found in it (`StopScanner`).

Strings are matched on decoded text, never on token sequences: one string has many tokenisations. What is found
does not depend on how the text is split over tokens. Plain Python; knows no rows and no arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlxq_worker.engine.api import REPLACEMENT

MAX_PENDING = 64
"""Tokens. A character has at most four bytes, so this many undecodable ones in a row are no character."""


class TextStream:
    """Turns token ids into text one token at a time; the pieces join to exactly `decode(all ids)`.

    A token may hold part of a character, and a decoder may look back one token (for a space it writes or not).
    So each push decodes a short window: from a point where the text was complete, to the end. Replacement
    characters at the very end may still become a real one (some decoders write one for every byte): they are
    held back until a later token settles them.

    Only a byte-fallback decoder that meets invalid UTF-8 can contradict itself: it then rewrites characters that
    were complete before. Text that was returned stays as it was. After `MAX_PENDING` tokens in a row without any text
    that is settled, what is there is taken as it is, so that a push costs the same however long the noise lasts.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._window_start = 0  # the window's first ids were released before; they are context
        self._context_end = 0  # ids[_window_start:_context_end] is context, the rest is new
        self._released = 0  # characters of the window's new text that were already returned

    def push(self, token_id: int) -> str:
        """Add one token and return the text that is settled by it, possibly none."""
        self._ids.append(token_id)
        text = self._new_text()
        is_noise = len(self._ids) - self._context_end >= MAX_PENDING
        if is_noise and not text:
            del self._ids[self._context_end :]  # special tokens: as if they had not been
            return ""
        settled = text if is_noise else text.rstrip(REPLACEMENT)
        piece = settled[self._released :]
        if settled and settled == text:
            self._window_start, self._context_end, self._released = self._context_end, len(self._ids), 0
        else:
            self._released = max(self._released, len(settled))
        return piece

    def flush(self) -> str:
        """The text still held back, now that no token follows."""
        return self._new_text()[self._released :]

    def _new_text(self) -> str:
        context = self._decode(self._ids[self._window_start : self._context_end])
        return self._decode(self._ids[self._window_start :])[len(context) :]


@dataclass(frozen=True, slots=True)
class StopMatch:
    """Stop string `string` stands at `text[start:end]`."""

    string: str
    start: int
    end: int


class StopScanner:
    """Finds the stop string that completes first, reading a text piece by piece.

    Of several strings that complete on the same character the longest wins. Both rules speak of characters
    alone, so the answer is the same however the text is cut into pieces.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._search_start = 0
        self.text = ""

    def push(self, piece: str, *, armed: bool = True) -> StopMatch | None:
        """Add text and report the first stop string that it completes.

        Args:
            piece: the text that follows what was pushed before.
            armed: when false, a string that completes inside this piece does not count (`min_tokens`).
        """
        old_length = len(self.text)
        self.text += piece
        if not armed:
            return None
        found = [match for string in self._strings if (match := self._find(string, old_length))]
        return min(found, key=lambda match: (match.end, match.start), default=None)

    def pass_over(self, piece: str) -> None:
        """Add text of which nothing belongs to a stop string, nor what was pushed before it."""
        self.text += piece
        self._search_start = len(self.text)

    def _find(self, string: str, old_length: int) -> StopMatch | None:
        # |---- searched before ----|---- piece ----|     a match may begin len(string) - 1 before the piece
        start = self.text.find(string, max(self._search_start, old_length - len(string) + 1))
        return StopMatch(string, start, start + len(string)) if start >= 0 else None
