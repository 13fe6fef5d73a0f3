"""Tells where a model thinks before it answers: its markers, whether a prompt has opened them, and the split.

The markers are those that mlx-lm finds in the vocabulary. Text is cut by token ids, so a marker that somebody merely
writes about is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlxq_worker.engine.api import Decode, Reasoning, ReasoningState


@dataclass(frozen=True, slots=True)
class ReasoningMarkers:
    """The ids that open and close a model's reasoning part."""

    start_ids: tuple[int, ...]
    end_ids: tuple[int, ...]

    def after_prompt(self, prompt_ids: Sequence[int], decode: Decode) -> Reasoning | None:
        """How an answer to this prompt may begin; `None` if the prompt has closed the reasoning part already.

        Only markers at the very end of the prompt count, blanks aside: those before are somebody's text.
        """
        tail = _without_blanks(prompt_ids, decode)
        if tail[-len(self.end_ids) :] == self.end_ids:
            return None
        is_open = tail[-len(self.start_ids) :] == self.start_ids
        return Reasoning(start_ids=self.start_ids, end_ids=self.end_ids, is_open=is_open)


def reasoning_markers_of(tokenizer: Any) -> ReasoningMarkers | None:
    """The markers of this model, or `None` if it has none.

    Args:
        tokenizer: a transformers tokenizer.
    """
    from mlx_lm.tokenizer_utils import TokenizerWrapper  # late, since it imports mlx

    wrapper = TokenizerWrapper(tokenizer)
    if not wrapper.has_thinking:
        return None
    return ReasoningMarkers(tuple(wrapper.think_start_tokens), tuple(wrapper.think_end_tokens))


@dataclass(frozen=True, slots=True)
class ReasonedAnswer:
    """`reasoning` is `None` if there is no such part; `text` and `token_ids` are the rest."""

    reasoning: str | None
    text: str
    token_ids: tuple[int, ...]


def split_reasoning(reasoning: Reasoning | None, token_ids: Sequence[int], text: str, decode: Decode) -> ReasonedAnswer:
    """Cut the reasoning part off an answer. Newlines around the cut are the template's, and belong to neither side.

    Args:
        token_ids: the generated tokens.
        text: what the answer's text is, maybe cut at a stop string.
    """
    state = ReasoningState.after(reasoning, token_ids) if reasoning else None
    if reasoning is None or state is None or not state.has_begun:
        return ReasonedAnswer(None, text, tuple(token_ids))
    start = 0 if reasoning.is_open else len(reasoning.start_ids)
    if state.is_inside:
        return ReasonedAnswer(decode(token_ids[start:]).strip("\n"), "", ())
    thought = decode(token_ids[start : state.num_tokens - len(reasoning.end_ids)])
    rest = text.removeprefix(decode(token_ids[: state.num_tokens]))
    return ReasonedAnswer(thought.strip("\n"), rest.lstrip("\n"), tuple(token_ids[state.num_tokens :]))


def _without_blanks(prompt_ids: Sequence[int], decode: Decode) -> tuple[int, ...]:
    """The ids up to the last one that is no blank. A special token has no text, so it is told by an empty one."""
    end = len(prompt_ids)
    while end and (text := decode(prompt_ids[end - 1 : end])) and not text.strip():
        end -= 1
    return tuple(prompt_ids[:end])
