"""What a request says about single tokens: ids that must be the model's, ids that become text, texts that are tokens.

Plain Python over a tokenizer: knows no prompts and no arrays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from mlxq.contract import Alternative, TokenLogprob
from mlxq.errors import RequestError
from mlxq_worker.engine.api import REPLACEMENT, TokenScores
from mlxq_worker.model.tokenizer import Tokenizer, find_token

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def check_ids(token_ids: Iterable[int], vocab_size: int, param: str) -> None:
    """
    Raises:
        RequestError: an id is outside the vocabulary; `param` names the field that it came from.
    """
    for index, token_id in enumerate(token_ids):
        if not 0 <= token_id < vocab_size:
            raise RequestError(
                f"{param} has the token id {token_id} at index {index}, but the model's ids end at {vocab_size - 1}",
                param=param,
                code="out_of_range",
            )


def byte_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids of tokens that stand for single bytes, several of which are decoded together (``<0xE2>``)."""
    found = (find_token(tokenizer, f"<0x{byte:02X}>") for byte in range(256))
    return frozenset(token_id for token_id in found if token_id is not None)


def check_text(text: str, param: str) -> None:
    """
    Raises:
        RequestError: the text can't be UTF-8, which is what tokenizers read.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{param} holds a lone surrogate ({text[error.start]!a}), which is no character: use UTF-8 text",
            param=param,
            code="invalid_unicode",
        ) from error


def spellings_of(piece: bytes) -> Iterator[str]:
    """How vocabularies may spell a token of these bytes: as text, with SentencePiece's mark for blanks, as one byte, or
    in GPT-2's characters."""
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        pass
    else:
        yield from dict.fromkeys((text, text.replace(" ", "▁")))
    if len(piece) == 1:
        yield f"<0x{piece[0]:02X}>"
    yield "".join(_GPT2_CHARS[byte] for byte in piece)


class TokenTexts:
    """Shows tokens as OpenAI does: each with the text that it adds; where that is no text by itself, with its bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._shown: dict[int, tuple[str, bytes | None]] = {}  # scores name the same ids again and again

    def scored(self, scores: TokenScores) -> TokenLogprob:
        """One place of a sequence, with texts beside the ids."""
        top = [(token_id, logprob, rank) for rank, (token_id, logprob) in enumerate(scores.top, start=1)]
        found = {token_id for token_id, _ in scores.top}
        asked = [(token_id, logprob, 0) for token_id, logprob in scores.asked if token_id not in found]
        return TokenLogprob(
            chosen=self._alternative(scores.token_id, scores.logprob, scores.rank),
            top=tuple(self._alternative(*each) for each in (*top, *dict.fromkeys(asked))),
        )

    def unscored(self, token_id: int) -> TokenLogprob:
        """A prompt's first token, which follows nothing."""
        return TokenLogprob(chosen=self._alternative(token_id, None, 0))

    def bytes_of(self, token_id: int) -> bytes:
        """What a token adds to a text."""
        text, token_bytes = self._text_of(token_id)
        return text.encode(errors="replace") if token_bytes is None else token_bytes

    def _text_of(self, token_id: int) -> tuple[str, bytes | None]:
        if token_id not in self._shown:
            self._shown[token_id] = self._show(token_id)
        return self._shown[token_id]

    def _alternative(self, token_id: int, logprob: float | None, rank: int) -> Alternative:
        token, token_bytes = self._text_of(token_id)
        return Alternative(token_id=token_id, token=token, logprob=logprob, rank=rank, token_bytes=token_bytes)

    def _show(self, token_id: int) -> tuple[str, bytes | None]:
        # The second of two: some tokenizers leave out the blank with which a text's first token begins.
        text = self._decode([token_id, token_id])[len(self._decode([token_id])) :]
        if REPLACEMENT in text:
            token_bytes = _bytes_of_spelling(self._tokenizer.convert_ids_to_tokens(token_id) or "")
            if token_bytes is not None:
                return token_bytes.decode(errors="backslashreplace"), token_bytes
        return text, None

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _bytes_of_spelling(spelling: str) -> bytes | None:
    """The bytes of a token as vocabularies spell what is no text: ``<0xE2>`` (byte fallback), or GPT-2's characters, of
    which there is one for each byte. `None` if it is neither."""
    if match := _BYTE_TOKEN.fullmatch(spelling):
        return bytes.fromhex(match[1])
    try:
        return bytes(_GPT2_BYTES[char] for char in spelling)
    except KeyError:
        return None


def _gpt2_bytes() -> dict[str, int]:
    """GPT-2's table (`bytes_to_unicode` in its encoder.py), the other way round: printable bytes are their own
    characters, all others are counted on from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


_GPT2_BYTES = _gpt2_bytes()
_GPT2_CHARS = {byte: char for char, byte in _GPT2_BYTES.items()}
