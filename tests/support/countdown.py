"""A model without weights whose output is known beforehand: after token n comes n - 1, down to EOS, which is 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from tests.support.row_specs import row_spec

from mlxq_worker.engine.api import RowSpec

VOCAB_SIZE = 128
EOS = 0


class Countdown:
    """Called as mlx-lm's models are. It has nothing to remember, so it has no caches unless it is given some.

    After EOS the count starts again at the top.
    """

    def __init__(self, caches: Sequence[Any] = ()) -> None:
        self._caches = list(caches)

    def make_cache(self) -> list[Any]:
        return list(self._caches)

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        """Token ids (B, L) to logits (B, L, V)."""
        successors = (tokens.astype(mx.int32) - 1) % VOCAB_SIZE
        return (mx.arange(VOCAB_SIZE) == successors[..., None]).astype(mx.float32)


def decode(token_ids: Sequence[int]) -> str:
    """1 is "a", 2 is "b" and so on; EOS has no text."""
    return "".join(chr(ord("a") - 1 + token_id) for token_id in token_ids if token_id != EOS)


def counting_from(first: int, **changes: Any) -> RowSpec:
    """A row that generates `first`, first - 1, ..., 1, EOS: first + 1 tokens."""
    defaults = {
        "prompt_ids": (first + 1,),
        "end_tokens": {EOS: "<eos>"},
        "eos_ids": frozenset({EOS}),
        "max_tokens": 1000,
    }
    return row_spec(**{"row_id": str(first), **defaults, **changes})
