"""What may be told of an answer while it grows: only text that its finished answer will begin with.

Held back is what may still become a stop string, a character or a marker, and the newlines around a thought, which
belong to nobody. Plain Python; knows no rows, and no engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mlxq_worker.engine.api import Decode, Part, Reasoning, ReasoningState, RowSpec
from mlxq_worker.engine.rows.stop import TextStream

_TEMPLATES_OWN = "\n"
"""Newlines around a thought are the template's."""


def num_held_back(text: str, strings: Sequence[str]) -> int:
    """How many characters at the end of a text may be the beginning of one of these strings."""
    longest = max(map(len, strings), default=0) - 1
    for length in range(min(longest, len(text)), 0, -1):
        end = text[-length:]
        if any(string.startswith(end) for string in strings if len(string) > length):
            return length
    return 0


class LiveText:
    """Follows one answer token by token; `take` gives what may be told of it since the last time."""

    __slots__ = ("_content_start", "_decode", "_is_lost", "_num_told", "_pieces", "_spec", "_thought", "_unsettled")

    def __init__(self, spec: RowSpec, decode: Decode) -> None:
        assert spec.streaming is not None
        self._spec = spec
        self._decode = decode
        self._unsettled = spec.streaming.unsettled_ids
        self._thought = _Thought(spec.reasoning, decode, self._unsettled) if spec.reasoning else None
        self._content_start: int | None = None if spec.reasoning else 0
        self._num_told: dict[Part, int] = {"content": 0, "reasoning": 0}
        self._pieces: dict[Part, str] = {}
        self._is_lost = False

    def push(self, token_ids: Sequence[int], text: str, state: ReasoningState | None) -> None:
        """Take the next token in; the row goes on.

        Args:
            token_ids: all that have come.
            text: their text, as far as it is settled.
            state: where the answer is between reasoning and text.
        """
        if self._is_lost:
            return
        if self._thought is not None and state is not None and self._content_start is None:
            self._push_thought(self._thought, token_ids, text, state)
        if self._content_start is not None and token_ids[-1] not in self._unsettled:
            self._show_content(text, self._content_start)

    def take(self) -> list[tuple[Part, int, str]]:
        """What is new, each with where it begins in its part."""
        taken = [(part, self._num_told[part] - len(text), text) for part, text in self._pieces.items()]
        self._pieces.clear()
        return taken

    def _push_thought(self, thought: _Thought, token_ids: Sequence[int], text: str, state: ReasoningState) -> None:
        if state.is_starting:
            return
        if state.is_inside:
            self._tell("reasoning", thought.grow(token_ids, state))
        elif not state.has_begun:
            self._content_start = 0
        else:
            self._tell("reasoning", thought.close(token_ids, state))
            before = self._decode(token_ids[: state.num_tokens])
            if text.startswith(before):
                start = len(text) - len(text[len(before) :].lstrip(_TEMPLATES_OWN))
                # As long as there is nothing but newlines, more of them may follow.
                self._content_start = start if start < len(text) else None
            else:
                self._is_lost = not before.startswith(text)  # else it isn't settled yet

    def _show_content(self, text: str, start: int) -> None:
        end = len(text) - num_held_back(text, self._spec.stop)
        self._tell("content", text[start + self._num_told["content"] : end])

    def _tell(self, part: Part, text: str) -> None:
        if text:
            self._num_told[part] += len(text)
            self._pieces[part] = self._pieces.get(part, "") + text


class _Thought:
    """The text of a reasoning part, without its markers."""

    __slots__ = ("_decode", "_is_closed", "_num_read", "_num_told", "_opening", "_settled", "_start", "_stream",
                 "_unsettled", "_widest_end")  # fmt: skip

    def __init__(self, reasoning: Reasoning, decode: Decode, unsettled_ids: frozenset[int]) -> None:
        # Some models write the start marker although the prompt has it.
        repeats = reasoning.is_open and bool(reasoning.starts)
        self._opening = ReasoningState(replace(reasoning, is_open=False)) if repeats else None
        self._widest_end = max(map(len, reasoning.ends), default=1)
        self._decode = decode
        self._unsettled = unsettled_ids
        self._stream = TextStream(decode)
        self._start: int | None = None
        self._num_read = 0
        self._num_told = 0
        self._settled = ""
        self._is_closed = False

    def grow(self, token_ids: Sequence[int], state: ReasoningState) -> str:
        """What may be told with the newest token, which belongs to the part."""
        if self._start is None and not self._has_opened(token_ids[-1], state):
            return ""
        assert self._start is not None
        # |-- marker --|-- read before --|-- read now --| the last tokens may be the end marker's
        first = self._start + self._num_read
        for token_id in token_ids[first : len(token_ids) - self._widest_end + 1]:
            self._settled += self._stream.push(token_id)
            self._num_read += 1
        if not self._num_read or token_ids[self._start + self._num_read - 1] in self._unsettled:
            return ""
        if not self._num_told:
            self._settled = self._settled.lstrip(_TEMPLATES_OWN)
        shown = self._settled.rstrip(_TEMPLATES_OWN)
        self._settled = self._settled[len(shown) :]
        self._num_told += len(shown)
        return shown

    def close(self, token_ids: Sequence[int], state: ReasoningState) -> str:
        """What is left to tell once its end marker is there."""
        if self._is_closed:
            return ""
        self._is_closed = True
        start = self._start
        if start is None:
            start = self._opening.num_opening if self._opening else state.num_opening
        whole = self._decode(token_ids[start : max(start, state.num_tokens - state.num_closing)])
        return whole.strip(_TEMPLATES_OWN)[self._num_told :]

    def _has_opened(self, token_id: int, state: ReasoningState) -> bool:
        """Whether it is known where the part begins."""
        if self._opening is None:
            self._start = state.num_opening
        else:
            self._opening.push(token_id)
            if not self._opening.is_starting:
                self._start = self._opening.num_opening
        return self._start is not None
