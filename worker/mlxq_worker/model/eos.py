"""Resolves the set of tokens that end an answer, from every place where a model states one.

A union, never a replacement: config.json, generation_config.json, the tokenizer, the turn end of the chat template
and the user's own. Every member remembers its sources. A value that can't be right is an `EosError` that names its
source: a set that quietly lacks a member lets every answer run to its limit. Pure functions over dicts and a
tokenizer; reads no file and never imports mlx.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlxq.errors import EosError
from mlxq_worker.model.tokenizer import Tokenizer, find_token, token_text
from mlxq_worker.model.turn_end import AFTER_CALL, AFTER_LAST, TurnEnd, find_turn_ends

CONFIG = "config.json:eos_token_id"
TEXT_CONFIG = "config.json:text_config.eos_token_id"
GENERATION_CONFIG = "generation_config.json:eos_token_id"
TOKENIZER = "tokenizer"
CHAT_TEMPLATE = "chat_template"
OPTION = "--extra-eos-token"


@dataclass(frozen=True, slots=True)
class EosToken:
    """One member of the set: its id, its text, and every source that names it, in the order they were read."""

    id: int
    token: str
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RejectedEnd:
    """A token that was looked at and is no member: where it was found, and why it ends nothing."""

    token: str
    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class EosSet:
    """All tokens that end an answer, in the order they were found.

    `primary_id` is the one whose stop is reported with `stop_reason: null`: the tokenizer's own EOS, else the
    first found. `chat_only` holds the ids that only the chat template names: they end no plain completion. `rejected`
    are tokens that the chat template writes where turns end, and that are no ends.
    """

    tokens: tuple[EosToken, ...]
    primary_id: int | None
    chat_only: frozenset[int]
    rejected: tuple[RejectedEnd, ...] = ()

    def ids(self, chat: bool) -> frozenset[int]:
        """The ids that end a chat answer, or a plain completion."""
        every = frozenset(token.id for token in self.tokens)
        return every if chat else every - self.chat_only

    def members(self, ids: frozenset[int]) -> Iterator[EosToken]:
        """The members with these ids, in the set's order."""
        return (token for token in self.tokens if token.id in ids)


def resolve_eos(
    tokenizer: Tokenizer,
    config: Mapping[str, Any],
    generation_config: Mapping[str, Any],
    *,
    vocab_size: int,
    extra: Sequence[int | str] = (),
    allow_no_eos: bool = False,
) -> EosSet:
    """The EOS set of a model.

    Args:
        config: config.json as it is in the file; mlx-lm's own reader has replaced its ids already.
        vocab_size: how many ids the model can produce.
        extra: the user's additions. Digits are an id, anything else is the text of a token.
        allow_no_eos: accept a model that names no end token at all.

    Raises:
        EosError: a source holds something that can't be an end token, or no source names one.
    """
    sources_of: dict[int, list[str]] = {}
    turn_ends = _TurnEnds.of(tokenizer, vocab_size)
    for candidate in _candidates(tokenizer, config, generation_config, turn_ends, extra):
        sources = sources_of.setdefault(_checked_id(candidate, tokenizer, vocab_size), [])
        # A further place in the template adds nothing, nor does what is only inferred.
        is_told = _is_of_template(candidate.source) and any(map(_is_of_template, sources))
        is_told = is_told or (candidate.source.endswith(AFTER_CALL) and bool(sources))
        if candidate.source not in sources and not is_told:
            sources.append(candidate.source)
    if not sources_of and not allow_no_eos:
        raise EosError(
            "neither config.json, generation_config.json, the tokenizer nor the chat template names an"
            f" end-of-sequence token, so every answer would run to its limit: name one with {OPTION},"
            " or accept that with --allow-no-eos"
        )
    tokens = tuple(EosToken(i, token_text(tokenizer, i), tuple(sources)) for i, sources in sources_of.items())
    return EosSet(
        tokens=tokens,
        primary_id=_primary_id(tokens),
        chat_only=frozenset(token.id for token in tokens if all(map(_is_of_template, token.sources))),
        rejected=turn_ends.rejected,
    )


@dataclass(frozen=True, slots=True)
class _Candidate:
    value: object
    source: str


def _candidates(
    tokenizer: Tokenizer,
    config: Mapping[str, Any],
    generation_config: Mapping[str, Any],
    turn_ends: _TurnEnds,
    extra: Sequence[int | str],
) -> Iterator[_Candidate]:
    yield from _flatten(config.get("eos_token_id"), CONFIG)
    if isinstance(text_config := config.get("text_config"), Mapping):
        yield from _flatten(text_config.get("eos_token_id"), TEXT_CONFIG)
    yield from _flatten(generation_config.get("eos_token_id"), GENERATION_CONFIG)
    # By its text, not its id: a tokenizer gives an EOS that it does not have the unk id.
    yield from _flatten(tokenizer.eos_token, TOKENIZER)
    yield from (_Candidate(end.token, _source(end)) for end in turn_ends.ends)
    yield from (_Candidate(_id_or_text(value), OPTION) for value in extra)


def _flatten(value: object, source: str) -> Iterator[_Candidate]:
    """The values of a field that may hold none, one, or lists of them."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flatten(item, source)
    elif value is not None:
        yield _Candidate(value, source)


def _id_or_text(value: int | str) -> int | str:
    """An option's digits are always an id, as for mlx-lm: nobody ends answers on the word "2"."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"-?[0-9]+", value) else value


@dataclass(frozen=True, slots=True)
class _TurnEnds:
    """The template's turn ends that the model can produce. One beyond its vocabulary (a base model with a chat
    tokenizer) can't end anything, and is no reason to refuse completions."""

    ends: tuple[TurnEnd, ...]
    rejected: tuple[RejectedEnd, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, vocab_size: int) -> _TurnEnds:
        found = find_turn_ends(tokenizer)
        possible = {end: _is_possible(end.token, tokenizer, vocab_size) for end in found.ends}
        beyond = (
            RejectedEnd(end.token, _source(end), "the model's vocabulary doesn't reach it")
            for end in found.ends
            if not possible[end]
        )
        others = (RejectedEnd(end.token, _source(end), end.reason or "") for end in found.rejected)
        return cls(tuple(end for end in found.ends if possible[end]), (*beyond, *others))


def _is_possible(token: str, tokenizer: Tokenizer, vocab_size: int) -> bool:
    token_id = find_token(tokenizer, token)
    return token_id is not None and token_id < vocab_size


def _source(end: TurnEnd) -> str:
    return CHAT_TEMPLATE if end.where == AFTER_LAST else f"{CHAT_TEMPLATE}: {end.where}"


def _is_of_template(source: str) -> bool:
    return source == CHAT_TEMPLATE or source.startswith(f"{CHAT_TEMPLATE}:")


def _checked_id(candidate: _Candidate, tokenizer: Tokenizer, vocab_size: int) -> int:
    """The id that a candidate means."""
    value, source = candidate.value, candidate.source
    token_id = _id_of_text(value, source, tokenizer) if isinstance(value, str) else value
    if type(token_id) is not int:  # exactly: True is an int to Python, and 2.0 would pass for 2
        kind = type(token_id).__name__
        raise EosError(f"{source}: {value!r} is a {kind}; an end token is a whole number or the text of a token")
    if not 0 <= token_id < vocab_size:
        of_text = f" ({value!r})" if isinstance(value, str) else ""
        raise EosError(
            f"{source}: id {token_id}{of_text} is outside the model's vocabulary, which ends at {vocab_size - 1}"
        )
    return token_id


def _id_of_text(text: str, source: str, tokenizer: Tokenizer) -> int:
    if re.fullmatch(r"-?[0-9]+", text):
        # Most vocabularies have the word "2" too, so looking it up would end answers on it.
        raise EosError(f'{source}: "{text}" is a string; write the id without quotes')
    token_id = find_token(tokenizer, text)
    if token_id is None:
        close = difflib.get_close_matches(text, tokenizer.get_added_vocab(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else "give the exact text of a token, or its id"
        raise EosError(f"{source}: the tokenizer has no token {text!r}; {hint}")
    return token_id


def _primary_id(tokens: Sequence[EosToken]) -> int | None:
    own = (token.id for token in tokens if TOKENIZER in token.sources)
    return next(own, tokens[0].id if tokens else None)
