"""Finds the token with which a chat template ends an assistant message, by rendering a short conversation.

Models exist whose files list only ``<|endoftext|>`` while their chats end every turn with ``<|im_end|>``: the
template is then the only place that tells. Reads no file and no ids.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlxq.errors import RequestError
from mlxq_worker.model.chat import render
from mlxq_worker.model.tokenizer import Tokenizer

_SYSTEM, _QUESTION, _ANSWER = "mlxqSystemText", "mlxqQuestionText", "mlxqAnswerText"
_EXCHANGE = ({"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER})
# Some templates demand a system message, some refuse it.
_CONVERSATIONS: tuple[tuple[dict[str, str], ...], ...] = (
    _EXCHANGE,
    ({"role": "system", "content": _SYSTEM}, *_EXCHANGE),
)


def find_turn_end(tokenizer: Tokenizer) -> str | None:
    """The special token that the chat template writes right after an assistant message, if it writes one.

    Looked up in a rendered conversation: whitespace aside, the first thing after the answer must be a special or
    added token. The token that begins a text, or one that opens a message, is no end: a template without end
    tokens goes on with those. `None` also for a template that renders none of the conversations tried.
    """
    if tokenizer.chat_template is None:
        return None
    specials = _Specials.of(tokenizer)
    ends = (_turn_end_in(tokenizer, conversation, specials) for conversation in _CONVERSATIONS)
    return next(filter(None, ends), None)


@dataclass(frozen=True, slots=True)
class _Specials:
    """Finds special and added tokens in rendered text; white space around the text does not count."""

    pattern: re.Pattern[str]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> _Specials:
        longest_first = sorted(filter(None, tokenizer.get_added_vocab()), key=len, reverse=True)
        never = r"(?!)"
        return cls(re.compile("|".join(map(re.escape, longest_first)) or never))

    def every(self, text: str) -> list[str]:
        return self.pattern.findall(text)

    def first(self, text: str) -> list[str]:
        """The token that the text starts with, if it starts with one."""
        match = self.pattern.match(text.lstrip())
        return [match.group()] if match else []

    def last(self, text: str) -> list[str]:
        """The token that the text ends with, if it ends with one."""
        stripped = text.rstrip()
        return [match.group() for match in self.pattern.finditer(stripped) if match.end() == len(stripped)]


def _turn_end_in(tokenizer: Tokenizer, conversation: Sequence[Mapping[str, str]], specials: _Specials) -> str | None:
    try:
        text = render(tokenizer, conversation, add_generation_prompt=False)
        openers = _openers(tokenizer, conversation, text, specials)
    except RequestError:
        return None  # this template does not take such a conversation
    _, answer, rest = text.rpartition(_ANSWER)
    end = specials.first(rest) if answer else []
    return end[0] if end and end[0] not in openers else None


def _openers(
    tokenizer: Tokenizer, conversation: Sequence[Mapping[str, str]], text: str, specials: _Specials
) -> frozenset[str]:
    """The tokens that begin the text or open a message: those that `text` starts with, those right before the
    question and the answer, and all of the generation prompt's. Others before the question may be ends: that of a
    default system message."""
    bos = tokenizer.bos_token or ""
    before_question, _, rest = text.partition(_QUESTION)
    before_answer = rest.partition(_ANSWER)[0]
    first = specials.first(before_question.lstrip().removeprefix(bos))
    generation_prompt = _generation_prompt(tokenizer, conversation[:-1])
    last = [*specials.last(before_question), *specials.last(before_answer)]
    return frozenset([bos, *first, *last, *specials.every(generation_prompt)])


def _generation_prompt(tokenizer: Tokenizer, conversation: Sequence[Mapping[str, str]]) -> str:
    """What the template adds for the model to answer; nothing if it can't be told from the rest."""
    closed = render(tokenizer, conversation, add_generation_prompt=False)
    opened = render(tokenizer, conversation, add_generation_prompt=True)
    return opened[len(closed) :] if opened.startswith(closed) else ""
