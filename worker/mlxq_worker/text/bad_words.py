"""Words that must not be generated, as the sequences of tokens that spell them.

A word has many spellings: with and without a blank in front, and cut into other tokens than the tokenizer would choose.
That is what a model falls back on when its first choice is forbidden, and what a grammar may leave it. Plain Python
over a tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mlxq.errors import RequestError
from mlxq_worker.model.tokenizer import Tokenizer, find_token
from mlxq_worker.text.vocabulary import TokenTexts, check_ids, check_text, spellings_of

_MAX_SPELLINGS = 64
"""Of one word with or without a blank; those of the fewest tokens count, as the likeliest."""

Ids = tuple[int, ...]


class BadWordSpeller:
    """Spells words with the tokens of one model."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._texts = TokenTexts(tokenizer)

    def ids(self, words: Sequence[str]) -> tuple[Ids, ...]:
        """The sequences of tokens that spell one of the words, at the start of a text, behind a blank, or inside it.

        vLLM (`SamplingParams.update_from_tokenizer` in vllm/sampling_params.py) has the tokenizer's own spelling only,
        and leaves out the form behind a blank where it has another number of tokens. A sequence is left out if it holds
        another one, which forbids it already.

        Raises:
            RequestError: a word is no text, has no tokens, or one that the model doesn't know.
        """
        return tuple(ids for index, word in enumerate(words) for ids in self._spellings(word, f"bad_words[{index}]"))

    def _spellings(self, word: str, param: str) -> Iterable[Ids]:
        check_text(word, param)
        text = word.lstrip()
        own = [tuple(self._tokenizer.encode(each, add_special_tokens=False)) for each in (text, f" {text}")]
        if not own[0]:
            raise RequestError(f"{param} is {word!r}, which has no tokens", param=param, code="out_of_range")
        check_ids((token_id for ids in own for token_id in ids), self._vocab_size, param)
        kept: list[Ids] = []
        for ids in (*own, *self._cuts(text.encode()), *self._cuts(f" {text}".encode())):
            if not any(_holds(ids, other) for other in kept):
                kept.append(ids)
        return kept

    def _cuts(self, text: bytes) -> Iterator[Ids]:
        """The ways to cut a text into tokens, those of the fewest first."""
        pieces: list[list[tuple[int, int]]] = [self._pieces_at(text, start) for start in range(len(text))]
        ways: list[tuple[int, Ids]] = [(0, ())]
        num_found = 0
        while ways and num_found < _MAX_SPELLINGS:
            longer = [(end, (*ids, token_id)) for start, ids in ways for end, token_id in pieces[start]]
            complete = [ids for end, ids in longer if end == len(text)]
            yield from complete[: _MAX_SPELLINGS - num_found]
            num_found += len(complete)
            ways = [(end, ids) for end, ids in longer if end < len(text)][: _MAX_SPELLINGS * len(text)]

    def _pieces_at(self, text: bytes, start: int) -> list[tuple[int, int]]:
        """The tokens that go on with a text: where each ends, and its id; the longest first."""
        ends = range(len(text), start, -1)
        return [(end, token_id) for end in ends for token_id in self._tokens_of(text[start:end])]

    def _tokens_of(self, piece: bytes) -> frozenset[int]:
        """The ids of the tokens that add exactly these bytes to a text."""
        found = {find_token(self._tokenizer, spelling) for spelling in spellings_of(piece)}
        return frozenset(
            token_id
            for token_id in found
            if token_id is not None and token_id < self._vocab_size and self._texts.bytes_of(token_id) == piece
        )


def _holds(ids: Ids, other: Ids) -> bool:
    return any(ids[start : start + len(other)] == other for start in range(len(ids) - len(other) + 1))
