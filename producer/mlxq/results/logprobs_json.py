"""Log probabilities in JSON: OpenAI's two shapes for an answer, and vLLM's for a prompt.

Knows the numbers as `mlxq.contract` has them, and nothing of the lines that they stand in.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from typing import Any

from mlxq.contract import Alternative, TokenLogprob

LEAST_LOGPROB = -9999.0
"""What OpenAI and vLLM write for a token that could not have been: JSON has no infinity."""


def of_chat(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """``logprobs`` of a chat's choice."""
    content = [
        {**_chat_token(token.chosen), "top_logprobs": [_chat_token(other) for other in token.top]} for token in tokens
    ]
    return {"content": content, "refusal": None}


def of_completion(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """``logprobs`` of a completion's choice: parallel lists. As in vLLM, the token that was chosen is among the top
    ones, and offsets count from the start of the text. A prompt's first token has no numbers."""
    return {
        "tokens": [token.chosen.token for token in tokens],
        "token_logprobs": [_logprob(token.chosen) for token in tokens],
        "top_logprobs": [_by_text(token) for token in tokens],
        "text_offset": list(_offsets(tokens)),
    }


def of_prompt(tokens: Sequence[TokenLogprob | None]) -> list[dict[str, Any] | None]:
    """vLLM's ``prompt_logprobs``: for each token the alternatives by id, itself among them. The first token has
    none, since nothing comes before it."""
    return [None if token is None else _by_id(token) for token in tokens]


def _offsets(tokens: Sequence[TokenLogprob]) -> Iterator[int]:
    """How many characters are complete before each token: one that several tokens make up counts behind the last."""
    decoder, offset = getincrementaldecoder("utf-8")("replace"), 0
    for token in tokens:
        yield offset
        offset += len(decoder.decode(_utf8(token.chosen)))


def _chat_token(token: Alternative) -> dict[str, Any]:
    return {"token": token.token, "logprob": _logprob(token), "bytes": list(_utf8(token))}


def _utf8(token: Alternative) -> bytes:
    return token.token.encode("utf-8", "replace") if token.token_bytes is None else token.token_bytes


def _by_text(token: TokenLogprob) -> dict[str, float | None] | None:
    """Of two tokens with the same text the chosen one counts, else the more probable one."""
    if token.chosen.logprob is None:
        return None
    texts: dict[str, float | None] = {}
    for other in (token.chosen, *token.top):
        texts.setdefault(other.token, _logprob(other))
    return texts


def _by_id(token: TokenLogprob) -> dict[str, Any]:
    return {
        str(other.token_id): {"logprob": _logprob(other), "rank": other.rank, "decoded_token": other.token}
        for other in (token.chosen, *token.top)
    }


def _logprob(token: Alternative) -> float | None:
    return None if token.logprob is None else max(token.logprob, LEAST_LOGPROB)
