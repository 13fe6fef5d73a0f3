"""What the tokens of a step belong to: columns of a row's slot, or short prompts that attend side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import mlx.core as mx

from mlxq_worker.engine.kvcache.prefix import Prefix
from mlxq_worker.engine.kvcache.slot_allocator import Slot
from mlxq_worker.engine.plan import PrefixChunk
from mlxq_worker.engine.runners.attention import CAUSAL_BLOCK, is_fused

MAX_PACKED_TOKENS = CAUSAL_BLOCK
"""Tokens of the longest prompt that is packed with others, which attends in a single block. Longer ones attend one by
one: by then starting to is the least of it."""

_PACKING_STEP = 16


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of one row that are in this step: columns `start` to `stop` of its slot.

    Args:
        prefix: what the row attends to before its own columns, if anything.
        row: the row's number, which it keeps while it is in the batch.
        source: with the first tokens behind a prefix, that prefix: where the row's state comes from, and its first
            columns if it doesn't attend to the prefix.
    """

    slot: Slot
    start: int
    stop: int
    prefix: Prefix | None = None
    row: int = 0
    source: Prefix | None = None

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def columns(self) -> range:
        return range(self.start, self.stop)

    def later(self, num_steps: int) -> Span:
        """The same one so many tokens further, of a row that decodes."""
        return Span(self.slot, self.start + num_steps, self.stop + num_steps, self.prefix, self.row, self.source)

    @property
    def packing_size(self) -> int:
        """Prompts of the same size are packed and attend together; 0 for what attends by itself."""
        sees_itself_alone = self.start == 0 and (self.prefix is None or not is_fused())
        return -(-len(self) // _PACKING_STEP) if sees_itself_alone and len(self) <= MAX_PACKED_TOKENS else 0

    @property
    def positions(self) -> range:
        """The tokens' positions in their sequence."""
        before = len(self.prefix) if self.prefix else 0
        return range(before + self.start, before + self.stop)


class PackedPrompts:
    """Short beginnings of prompts, which attend to nothing but themselves: n tokens as B rows of Q, the shorter rows
    filled up at their ends, where no token that counts sees what is there.

    Args:
        lengths: tokens of each row.

    Attributes:
        kept: (n,) where each token stands among the B * Q; `None` where all of them count.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self._num_tokens = sum(lengths)
        self._num_rows, self._width = len(lengths), max(lengths)
        rows = list(zip(accumulate(lengths, initial=0), lengths, strict=False))
        is_ragged = self._num_rows * self._width > self._num_tokens
        # (B * Q,) which token stands where: behind a row's last one, that one again
        filled = (first + min(i, length - 1) for first, length in rows for i in range(self._width))
        kept = (row * self._width + i for row, length in enumerate(lengths) for i in range(length))
        self._filled = indices_of(filled) if is_ragged else None
        self.kept = indices_of(kept) if is_ragged else None

    def __len__(self) -> int:
        return self._num_tokens

    def side_by_side(self, tokens: mx.array) -> mx.array:
        """(n, heads, 1, D) to (B, heads, Q, D)."""
        filled = tokens if self._filled is None else tokens[self._filled]
        _, num_heads, _, size = tokens.shape
        return filled.reshape(self._num_rows, self._width, num_heads, size).swapaxes(1, 2)


Segment = Span | PackedPrompts | PrefixChunk
"""Tokens of a step, side by side in it, that attend at once."""


def grouped(spans: Sequence[Span]) -> tuple[Span | PackedPrompts, ...]:
    """Prompts' chunks as they attend: those side by side that are of one packing size together."""
    groups: list[Span | PackedPrompts] = []
    for size, group in groupby(spans, key=lambda span: span.packing_size):
        own = list(group)
        groups += [PackedPrompts(list(map(len, own)))] if size and len(own) > 1 else own
    return tuple(groups)


def indices_of(values: Iterable[int]) -> mx.array:
    """Unsigned, since mlx takes a quarter longer to scatter where an index might count from the end."""
    return mx.array(list(values), dtype=mx.uint32)
