"""A word that must not be generated is forbidden in every spelling that a model could fall back on."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
from tests.support.held_answers import demo, encode, eos_ids, made, request
from tests.support.random_walks import allowed_ids
from tests.support.small_tokenizers import FakeTokenizer, real_tokenizer

from mlxq.errors import RequestError
from mlxq_worker.text.bad_words import BadWordSpeller

WORDS = FakeTokenizer(words={"cat": 1, " cat": 2, "dog": 3, " ": 4, "fish": 5, " f": 6, "ish": 7})


def spelled(*words: str) -> tuple[tuple[int, ...], ...]:
    return BadWordSpeller(WORDS, 100).ids(words)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("cat", ((1,), (2,))),
        ("  cat", ((1,), (2,))),
        ("dog", ((3,),)),
        ("fish", ((5,), (6, 7))),
        ("catdog", ((1, 3), (2, 3))),
    ],
    ids=["one token each way", "blanks in front", "a blank of its own", "longer behind a blank", "several tokens"],
)
def test_a_bad_word_is_forbidden_at_the_start_and_behind_a_blank(word: str, expected: Sequence[Sequence[int]]) -> None:
    assert spelled(word) == expected


@pytest.mark.parametrize("word", ["", "  ", "§", "\ud800"])
def test_a_bad_word_that_has_no_tokens_is_refused(word: str) -> None:
    with pytest.raises(RequestError) as caught:
        spelled("cat", word)

    assert caught.value.param == "bad_words[1]"


def test_a_bad_word_beyond_the_models_vocabulary_is_refused() -> None:
    with pytest.raises(RequestError, match="bad_words"):
        BadWordSpeller(WORDS, 3).ids(["dog"])


def test_a_word_is_forbidden_however_it_is_cut_into_tokens() -> None:
    cut = FakeTokenizer(words={"cat": 1, "c": 2, "at": 3, "a": 4, "t": 5, " c": 6, "ca": 7})

    assert set(BadWordSpeller(cut, 100).ids(["cat"])) == {(1,), (2, 3), (7, 5), (2, 4, 5), (6, 3), (6, 4, 5)}


class SentencePiece(FakeTokenizer):
    """As Llama 2's: a text begins with a blank of its own, so a word inside one has another spelling."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return super().encode("▁" + text.replace(" ", "▁"), add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        tokens = [self.convert_ids_to_tokens(token_id) or "" for token_id in token_ids]
        return "".join(tokens).replace("▁", " ").removeprefix(" ")


def test_a_word_is_forbidden_without_a_blank_too_where_the_tokenizer_always_puts_one() -> None:
    tokenizer = SentencePiece(words={"▁cat": 1, "cat": 2, "▁": 3})

    assert set(BadWordSpeller(tokenizer, 100).ids(["cat"])) == {(1,), (2,)}


def test_a_word_of_characters_that_no_token_holds_whole_is_forbidden_by_its_bytes() -> None:
    tokenizer = real_tokenizer()
    ids = tokenizer.encode("é", add_special_tokens=False)

    assert len(ids) == 2
    assert tuple(ids) in BadWordSpeller(tokenizer, 264).ids(["é"])


def test_a_long_word_has_a_bounded_number_of_spellings() -> None:
    letters = {chr(code) * length: 10 * code + length for code in range(97, 123) for length in (1, 2, 3, 4)}

    assert len(BadWordSpeller(FakeTokenizer(words=letters), 10_000).ids(["a" * 40])) <= 2 + 2 * 64


def completes(ids: Sequence[int], words: Sequence[Sequence[int]]) -> bool:
    return any(tuple(ids[-len(word) :]) == tuple(word) for word in words)


def test_a_word_is_forbidden_inside_a_regex_too() -> None:
    """A walk that takes any token that the expression allows and no spelling forbids never comes to the word."""
    words = BadWordSpeller(demo().tokenizer, demo().vocab_size).ids(["Paris"])
    random = Random(3)
    texts = set()
    for _ in range(200):
        constraint, ids = made(request("regex", "(Paris|Parma|Rome)(, (Paris|Parma|Rome))?")), list[int]()
        while free := [each for each in allowed_ids(constraint) if not completes([*ids, each], words)]:
            token_id = random.choice(free)
            if token_id in eos_ids():
                break
            ids.append(token_id)
            constraint.advance(token_id)
        texts.add(demo().tokenizer.decode(ids))

    assert {"Rome", "Parma"} <= texts
    assert [text for text in texts if "Paris" in text] == []
    assert len(encode("Paris")) < len("Paris")
