"""Token ids that must be the model's, bad words as tokens, and tokens as results show them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests.support.small_tokenizers import ASCII, FakeTokenizer, real_tokenizer

from mlxq.contract import Alternative
from mlxq.errors import RequestError
from mlxq_worker.engine.api import TokenScores
from mlxq_worker.text.vocabulary import TokenTexts, check_ids


@pytest.mark.parametrize("token_id", [-1, 100])
def test_an_id_outside_the_vocabulary_is_refused_by_its_place_and_its_field(token_id: int) -> None:
    with pytest.raises(RequestError) as caught:
        check_ids([0, 99, token_id], 100, "allowed_token_ids")

    assert (caught.value.param, caught.value.code) == ("allowed_token_ids", "out_of_range")
    assert f"{token_id} at index 2" in caught.value.message


# --- Tokens as results show them ------------------------------------------------------------------------------


def shown(texts: TokenTexts, token_id: int) -> Alternative:
    return texts.scored(TokenScores(token_id=token_id, logprob=-0.5, rank=3)).chosen


def test_scores_get_their_texts_and_the_top_ones_their_ranks() -> None:
    scores = TokenScores(token_id=ord("c"), logprob=-2.0, rank=7, top=((ord("a"), -0.5), (ord("b"), -1.5)))

    scored = TokenTexts(FakeTokenizer(words=ASCII)).scored(scores)

    assert scored.chosen == Alternative(token_id=99, token="c", logprob=-2.0, rank=7)
    assert scored.top == (
        Alternative(token_id=97, token="a", logprob=-0.5, rank=1),
        Alternative(token_id=98, token="b", logprob=-1.5, rank=2),
    )


@pytest.mark.parametrize("text", ["Grüße", "日本", "🎉 ok", "a b"])
def test_the_bytes_of_a_texts_tokens_join_to_the_text(text: str) -> None:
    tokenizer = real_tokenizer()
    texts = TokenTexts(tokenizer)

    tokens = [shown(texts, token_id) for token_id in tokenizer.encode(text, add_special_tokens=False)]

    pieces = [token.token.encode() if token.token_bytes is None else token.token_bytes for token in tokens]
    assert b"".join(pieces).decode() == text


def test_a_part_of_a_character_is_shown_by_its_bytes() -> None:
    tokenizer = real_tokenizer()

    first, *_ = tokenizer.encode("🎉", add_special_tokens=False)

    assert shown(TokenTexts(tokenizer), first).token == r"\xf0"
    assert shown(TokenTexts(tokenizer), first).token_bytes == b"\xf0"


class SentencePiece(FakeTokenizer):
    """As Llama 2's: a text's first blank is left out, and bytes have tokens of their own."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        tokens = [self.convert_ids_to_tokens(token_id) or "" for token_id in token_ids]
        data = b"".join(
            bytes.fromhex(token[3:5]) if token.startswith("<0x") else token.replace("▁", " ").encode()
            for token in tokens
        )
        return data.decode(errors="replace").removeprefix(" ")


def test_a_blank_that_a_decoder_leaves_out_at_the_start_belongs_to_the_token() -> None:
    texts = TokenTexts(SentencePiece(words={"▁cat": 1, "s": 2, "<0xE2>": 3}))

    assert [shown(texts, token_id).token for token_id in (1, 2)] == [" cat", "s"]
    assert shown(texts, 3).token_bytes == b"\xe2"
