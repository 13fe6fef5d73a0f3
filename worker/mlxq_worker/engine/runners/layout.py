"""Where the tokens of one step go: their positions, the slots and columns that they are written to, and how they
attend to what is there. Made once a step from plain spans, as arrays that every layer uses.

Knows nothing of keys and values: `kvcache/slots` holds those.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, groupby

import mlx.core as mx
import numpy as np

from mlxq_worker.engine.kvcache.prefix import Prefix
from mlxq_worker.engine.kvcache.slot_allocator import Slot
from mlxq_worker.engine.kvcache.slots import Write
from mlxq_worker.engine.plan import PrefixChunk
from mlxq_worker.engine.runners.attention import CAUSAL_BLOCK, is_fused

MAX_PACKED_TOKENS = CAUSAL_BLOCK
"""Tokens of the longest prompt that is packed with others, which attends in a single block. Longer ones attend one by
one: by then starting to is the least of it."""

_PACKING_STEP = 16


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of one row that are in this step: columns `start` to `stop` of its slot, behind its prefix if any.

    `source` is a prefix that is to be copied to the slot first.
    """

    slot: Slot
    start: int
    stop: int
    prefix: Prefix | None = None
    source: Prefix | None = None

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def columns(self) -> range:
        return range(self.start, self.stop)

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


class Layout:
    """First one token of each decoding row, then the spans of prompts, then the chunks of prefixes. N tokens in all, M
    of them in slots.

    Args:
        decoding: spans of one token, by rising slot; where attention is a single kernel those without a prefix first.
        spans: the prompt chunks, in the order of their tokens; best by `packing_size`.
        prefixes: the prefix chunks, in the order of their tokens.

    Attributes:
        windows: those of decoding rows that attend to their slots and nothing else.
        sharing: how tokens attend to shared prefixes, if any does. The decoding rows' do so together; where attention
            is done in parts anyway, those without a prefix and prompts' join them.
        shared_windows: those of the decoding rows in `sharing`.
        joined: the prompt chunks whose tokens are in `sharing`, packed prompts of about the same length put together.
        segments: those that attend each by itself, packed prompts put together, too.
    """

    def __init__(
        self, decoding: Sequence[Span], spans: Sequence[Span] = (), prefixes: Sequence[PrefixChunk] = ()
    ) -> None:
        in_slots = (*decoding, *spans)
        self.prefixes = tuple(prefixes)
        self.copied_prefixes: dict[Prefix, list[Slot]] = {}  # and where to
        for span in spans:
            if span.source is not None:
                self.copied_prefixes.setdefault(span.source, []).append(span.slot)
        sharing = [span for span in decoding if span.prefix] if is_fused() else in_slots
        self.sharing = Sharing(sharing) if any(span.prefix for span in sharing) else None
        whole = [span for span in decoding if not span.prefix] if is_fused() else [] if self.sharing else decoding
        self.windows = _windows(whole)
        self.shared_windows = _windows(decoding[len(whole) :])
        self.num_whole = len(whole)
        grouped = _grouped(spans)
        self.joined = grouped if self.sharing and not is_fused() else ()
        self.segments: tuple[Segment, ...] = (*(() if self.joined else grouped), *prefixes)
        self.num_decoding = len(decoding)
        self.num_in_slots = sum(map(len, in_slots))
        positions = [position for span in in_slots for position in span.positions]
        positions += [position for chunk in prefixes for position in range(chunk.start, chunk.stop)]
        self.positions = mx.array(positions)  # (N,)
        self.writes = _writes(in_slots)


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
        self._filled = _indices(filled) if is_ragged else None
        self.kept = _indices(kept) if is_ragged else None

    def __len__(self) -> int:
        return self._num_tokens

    def side_by_side(self, tokens: mx.array) -> mx.array:
        """(n, heads, 1, D) to (B, heads, Q, D)."""
        filled = tokens if self._filled is None else tokens[self._filled]
        _, num_heads, _, size = tokens.shape
        return filled.reshape(self._num_rows, self._width, num_heads, size).swapaxes(1, 2)


Segment = Span | PackedPrompts | PrefixChunk
"""Tokens of a step, side by side in it, that attend at once."""


def _grouped(spans: Sequence[Span]) -> tuple[Span | PackedPrompts, ...]:
    groups: list[Span | PackedPrompts] = []
    for size, group in groupby(spans, key=lambda span: span.packing_size):
        own = list(group)
        groups += [PackedPrompts(list(map(len, own)))] if size and len(own) > 1 else own
    return tuple(groups)


def _writes(in_slots: Sequence[Span]) -> tuple[Write, ...]:
    """One write for each slab."""
    first, starts = 0, []
    for span in in_slots:
        starts.append((span, first))
        first += len(span)
    starts.sort(key=lambda each: each[0].slot.slab)
    grouped = {slab: list(group) for slab, group in groupby(starts, key=lambda each: each[0].slot.slab)}
    return tuple(
        Write(
            slab,
            None if len(grouped) == 1 else _taken([start + i for span, start in group for i in range(len(span))]),
            _indices(span.slot.index for span, _ in group for _ in range(len(span)))[:, None],
            _indices(chain.from_iterable(span.columns for span, _ in group))[:, None],
        )
        for slab, group in grouped.items()
    )


def _taken(tokens: Sequence[int]) -> mx.array | slice:
    """These tokens of a step, in rising order: as a slice where they lie side by side, which takes no kernel."""
    first, last = tokens[0], tokens[-1]
    return slice(first, last + 1) if last - first + 1 == len(tokens) else _indices(tokens)


def _indices(values: Iterable[int]) -> mx.array:
    """Unsigned, since mlx takes a quarter longer to scatter where an index might count from the end."""
    return mx.array(list(values), dtype=mx.uint32)


class Window:
    """How the decoding rows of one slab attend to it: all slots up to the last one in use, over one window of columns.

    S slots, B decoding rows, W columns.

    Args:
        slab: which one.
        first: the index of its first row among all decoding rows.
        decoding: spans of one token, by rising slot.
    """

    def __init__(self, slab: int, first: int, decoding: Sequence[Span]) -> None:
        lengths = {span.slot.index: span.stop for span in decoding}
        self.slab = slab
        self.rows, self.num_rows = slice(first, first + len(lengths)), len(lengths)
        self.num_slots = max(lengths) + 1
        self.width = max(lengths.values())
        in_window = [lengths.get(slot, 1) for slot in range(self.num_slots)]
        is_ragged = min(in_window) < self.width
        # Made by the host: a few thousand booleans, instead of kernels that make them.
        counts = np.arange(self.width) < np.array(in_window)[:, None] if is_ragged else None
        self.mask = None if counts is None else mx.array(counts)[:, None, None]
        """(S, 1, 1, W), true where a key counts"""
        self._full_mask: mx.array | None = None
        has_holes = len(lengths) < self.num_slots
        rows = {slot: index for index, slot in enumerate(lengths)}
        # (S,) which decoding row stands in for each slot: its own, or any for a slot that is empty
        self.query_rows = mx.array([rows.get(slot, 0) for slot in range(self.num_slots)]) if has_holes else None
        self.result_rows = mx.array(list(lengths)) if has_holes else None  # (B,) where each row's result stands

    def mask_of(self, num_heads: int) -> mx.array | None:
        """The mask for so many heads of queries. Where attention is a single kernel it is laid out in full, (S, heads,
        1, W), once a step: the kernel would have it copied like that in every layer."""
        if self.mask is None or not is_fused() or 1 in (self.num_slots, num_heads):
            return self.mask
        if self._full_mask is None or self._full_mask.shape[1] != num_heads:
            shape = (self.num_slots, num_heads, 1, self.width)
            self._full_mask = mx.contiguous(mx.broadcast_to(self.mask, shape))
        return self._full_mask


def _windows(decoding: Sequence[Span]) -> tuple[Window, ...]:
    first, windows = 0, []
    for slab, group in groupby(decoding, key=lambda span: span.slot.slab):
        windows.append(Window(slab, first, list(group)))
        first = windows[-1].rows.stop
    return tuple(windows)


class Sharing:
    """Which of n tokens attend to which prefix. `order` (n,) puts the results, group after group and then those of
    tokens that share nothing, into the tokens' order; `None` where they are in it already."""

    def __init__(self, spans: Sequence[Span]) -> None:
        groups: dict[Prefix | None, list[int]] = {}
        for index, prefix in enumerate(chain.from_iterable([span.prefix] * len(span) for span in spans)):
            groups.setdefault(prefix, []).append(index)
        alone = groups.pop(None, [])
        grouped = list(chain.from_iterable(groups.values()))
        self.groups = {prefix: mx.array(group) for prefix, group in groups.items() if prefix}  # (tokens of the group,)
        self.num_tokens = len(grouped) + len(alone)
        self.num_alone = len(alone)
        order = [*grouped, *alone]
        in_order = order == sorted(order)
        self.order = None if in_order else mx.array(sorted(range(len(order)), key=order.__getitem__))
