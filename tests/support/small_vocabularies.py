"""Two vocabularies of tokens, with and without text of their own, and how each is decoded: by bytes, and by pieces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

# A byte-level vocabulary: ids below 256 are bytes, then pieces of several bytes (also cut inside a character), and
# special tokens, which have no text.
BYTE_LEVEL = [bytes([byte]) for byte in range(256)]
BYTE_LEVEL += [b" the", "é".encode(), b"\xe2\x82", b"\xaca", "🙂".encode()[:3], "🙂".encode()[3:] + b"\xc3", b"", b""]

# A SentencePiece vocabulary: "▁" is a space, and the decoder strips the one that the text begins with. Characters
# outside it are written in byte tokens.
SENTENCEPIECE: list[str | int] = ["▁Hello", "▁world", "▁", "▁▁", "lo", ".", ""]
NUM_PIECES = len(SENTENCEPIECE)
SENTENCEPIECE += range(256)


def decode_byte_level(token_ids: Sequence[int]) -> str:
    return b"".join(BYTE_LEVEL[token_id] for token_id in token_ids).decode(errors="replace")


def decode_sentencepiece(token_ids: Sequence[int]) -> str:
    """Like tokenizers' ByteFallback: a run of byte tokens that isn't valid UTF-8 gives one U+FFFD for every byte."""
    tokens = [token for token_id in token_ids if (token := SENTENCEPIECE[token_id]) != ""]
    runs = groupby(tokens, key=lambda token: isinstance(token, int))
    text = "".join(_decode_bytes(run) if is_byte else "".join(map(str, run)) for is_byte, run in runs)
    return text.replace("▁", " ").removeprefix(" ")


def _decode_bytes(run: Iterable[str | int]) -> str:
    data = bytes(int(byte) for byte in run)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(data)
