"""Finds the tokens with which a chat template ends an assistant message, by rendering short conversations.

Models exist whose files list only ``<|endoftext|>`` while their chats end every turn with ``<|im_end|>``: the
template is then the only place that tells. It is looked for after the last answer, in one with reasoning, and before a
further message. Reads no file and no ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mlxq.errors import RequestError
from mlxq_worker.model.chat import render, template_text
from mlxq_worker.model.tokenizer import Tokenizer

_SYSTEM, _QUESTION, _ANSWER = "mlxqSystemText", "mlxqQuestionText", "mlxqAnswerText"
_THOUGHT, _FURTHER = "mlxqThoughtText", "mlxqFurtherText"
_ASKED = {"role": "user", "content": _QUESTION}
_ANSWERED = {"role": "assistant", "content": _ANSWER}
_REASONED = {**_ANSWERED, "reasoning_content": _THOUGHT}
_ASKED_AGAIN = {"role": "user", "content": _FURTHER}
_TOLD = {"role": "system", "content": _SYSTEM}

Conversation = Sequence[Mapping[str, str]]

AFTER_LAST = "after the last answer"
AFTER_REASONING = "after an answer with reasoning"
BEFORE_FURTHER = "before a further message"
AFTER_CALL = "after a tool call"

_CONVERSATIONS: Mapping[str, tuple[Conversation, ...]] = {
    # Some templates demand a system message, some refuse it.
    AFTER_LAST: ((_ASKED, _ANSWERED), (_TOLD, _ASKED, _ANSWERED)),
    AFTER_REASONING: ((_ASKED, _REASONED), (_TOLD, _ASKED, _REASONED)),
    BEFORE_FURTHER: ((_ASKED, _ANSWERED, _ASKED_AGAIN), (_TOLD, _ASKED, _ANSWERED, _ASKED_AGAIN)),
}
_CALL_ENDS = (("<|call|>", "<|channel|>"), ("<|tool_response>", "<|tool_call>"))
"""Tokens with which a model hands over to a tool, and one that tells such a model: no template ends a message so."""
_PART_ENDS = (
    (("<|end|>", "<|channel|>"), "it ends every part of an answer, not only the last"),
    (("<|message_sep|>", "function call"), "it stands before calls as well"),
)
"""Tokens that end a part of an answer, each with a text that tells such a model, and why it ends no turn."""


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """A token and where it was found. With a `reason` it is none, and that says why."""

    token: str
    where: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class TurnEnds:
    """What was found: the turn ends, and the tokens that only seem to be some."""

    ends: tuple[TurnEnd, ...] = ()
    rejected: tuple[TurnEnd, ...] = field(default=())


def find_turn_end(tokenizer: Tokenizer) -> str | None:
    """The first of `find_turn_ends`."""
    return next((end.token for end in find_turn_ends(tokenizer).ends), None)


def find_turn_ends(tokenizer: Tokenizer) -> TurnEnds:
    """The special tokens that the chat template writes right after an assistant message.

    Looked up in rendered conversations: whitespace aside, the first thing after the answer must be a special or
    added token. The token that begins a text, or one that opens a message, is no end: a template without end
    tokens goes on with those. Nor is one that closes a thought as well. None also for a template that renders none of
    the conversations tried.
    """
    if tokenizer.chat_template is None:
        return TurnEnds()
    specials = _Specials.of(tokenizer)
    closing_thoughts = frozenset(_closing_thoughts(tokenizer, specials))
    found: list[TurnEnd] = []
    for where, conversations in _CONVERSATIONS.items():
        seen = (_turn_end_in(tokenizer, conversation, where, specials) for conversation in conversations)
        first = next((each for each in seen if each is not None), None)
        if first is not None:
            found.append(_judged(first, closing_thoughts, tokenizer))
    found += [TurnEnd(token, AFTER_CALL) for token in _present(_CALL_ENDS, tokenizer)]
    ends = tuple(each for each in found if each.reason is None)
    tokens = {each.token for each in ends}
    return TurnEnds(ends=ends, rejected=tuple(each for each in found if each.token not in tokens))


def _judged(end: TurnEnd, closing_thoughts: frozenset[str], tokenizer: Tokenizer) -> TurnEnd:
    if end.reason is not None:
        return end
    for pair, reason in _PART_ENDS:
        if end.token in _present([pair], tokenizer):
            return TurnEnd(end.token, end.where, reason)
    if end.token in closing_thoughts:
        return TurnEnd(end.token, end.where, "it closes the thought as well")
    return end


def _present(pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer) -> list[str]:
    added, template = tokenizer.get_added_vocab(), template_text(tokenizer)
    return [token for token, sign in pairs if token in added and (sign in added or sign in template)]


def _closing_thoughts(tokenizer: Tokenizer, specials: _Specials) -> Iterator[str]:
    """The tokens that stand between a thought and its answer, where the template writes thoughts."""
    for conversation in _CONVERSATIONS[AFTER_REASONING]:
        try:
            text = render(tokenizer, conversation, add_generation_prompt=False)
        except RequestError:
            continue
        _, thought, behind = text.partition(_THOUGHT)
        between, answer, _ = behind.partition(_ANSWER)
        if thought and answer:
            yield from specials.every(between)
        return


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


def _turn_end_in(tokenizer: Tokenizer, conversation: Conversation, where: str, specials: _Specials) -> TurnEnd | None:
    try:
        text = render(tokenizer, conversation, add_generation_prompt=False)
        openers = _openers(tokenizer, conversation, text, specials)
    except RequestError:
        return None  # this template does not take such a conversation
    _, answer, rest = text.rpartition(_ANSWER)
    behind, further, _ = rest.partition(_FURTHER)
    end = specials.first(behind) if answer else []
    if not end:
        return None
    if further:
        # Where the next message is opened is seen here: a token before that may close this one although a prompt for
        # the answer holds it, too.
        opening = specials.every(_common_end(text.partition(_QUESTION)[0], behind))
        openers = frozenset([tokenizer.bos_token or "", *opening])
    is_opener = end[0] in openers
    return TurnEnd(end[0], where, "it opens a message, or begins every text" if is_opener else None)


def _common_end(one: str, other: str) -> str:
    """The longest text with which both end: what opens a user's message, if both stand before one."""
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return one[len(one) - length :]


def _openers(tokenizer: Tokenizer, conversation: Conversation, text: str, specials: _Specials) -> frozenset[str]:
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


def _generation_prompt(tokenizer: Tokenizer, conversation: Conversation) -> str:
    """What the template adds for the model to answer; nothing if it can't be told from the rest."""
    closed = render(tokenizer, conversation, add_generation_prompt=False)
    opened = render(tokenizer, conversation, add_generation_prompt=True)
    return opened[len(closed) :] if opened.startswith(closed) else ""
