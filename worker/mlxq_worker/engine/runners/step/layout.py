"""Where the tokens of one step go: their positions, the slots and columns that they are written to, and how they
attend to what is there. Made once a step from plain spans, as arrays that every layer uses.

Knows nothing of keys and values: `kvcache/slots` holds those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, chain, groupby
from typing import Any, Protocol, Self, TypeVar

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxq_worker.engine.kvcache.places import Made, Places
from mlxq_worker.engine.kvcache.prefix import Prefix
from mlxq_worker.engine.kvcache.slot_allocator import Slot
from mlxq_worker.engine.plan import PrefixChunk
from mlxq_worker.engine.runners.attention import CAUSAL_BLOCK, is_fused

MAX_PACKED_TOKENS = CAUSAL_BLOCK
"""Tokens of the longest prompt that is packed with others, which attends in a single block. Longer ones attend one by
one: by then starting to is the least of it."""

_PACKING_STEP = 16

D = TypeVar("D", bound="Derived")
C = TypeVar("C")


class Derived(Protocol):
    """What is made of a step for every layer."""

    def next(self, layout: Layout) -> Self | None:
        """What would be made of the layout that comes next, where that is quicker than to make it anew."""


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


class Layout:
    """First one token of each decoding row, then the spans of prompts, then the chunks of prefixes. N tokens in all, M
    of them in slots.

    Args:
        decoding: spans of one token, by rising slot; where attention is a single kernel rows behind prefixes come
            last, in slabs of their own.
        spans: the prompt chunks, in the order of their tokens; best by `packing_size`.
        prefixes: the prefix chunks, in the order of their tokens.
        resting: the numbers of the rows that are in the batch and not in this step.

    Attributes:
        windows: those of all decoding rows; `whole_windows` of rows that attend to their slots and nothing else,
            `shared_windows` of those in `sharing`; `lone_windows` all of them, where there are no other tokens in the
            step than the rows' that attend to these.
        num_rows: one more than the highest number of a row in the batch.
        sharing: how tokens attend to shared prefixes, if any does. The decoding rows' do so together; where attention
            is done in parts anyway, those without a prefix and prompts' join them.
        joined: the prompt chunks whose tokens are in `sharing`, packed prompts of about the same length put together.
        segments: those that attend each by itself, packed prompts put together, too.
    """

    def __init__(
        self,
        decoding: Sequence[Span],
        spans: Sequence[Span] = (),
        prefixes: Sequence[PrefixChunk] = (),
        resting: Sequence[int] = (),
    ) -> None:
        in_slots = (*decoding, *spans)
        self._first_decoding, self._num_later = tuple(decoding), 0
        self.spans, self.prefixes = tuple(spans), tuple(prefixes)
        self.resting = tuple(resting)
        self.num_rows = 1 + max((*resting, *(span.row for span in in_slots)), default=-1)
        self._derived: dict[Callable[[Layout], Derived], Any] = {}
        self.copied_prefixes: dict[Prefix, list[Slot]] = {}  # and where to
        for span in spans:
            if span.source is not None and span.prefix is None:
                self.copied_prefixes.setdefault(span.source, []).append(span.slot)
        windows = _windows(decoding)
        shared = (window.rows.start for window in windows if any(span.prefix for span in decoding[window.rows]))
        first_shared = next(shared, len(decoding)) if is_fused() else 0
        sharing = decoding[first_shared:] if is_fused() else in_slots
        self.sharing = Sharing(sharing) if any(span.prefix for span in sharing) else None
        self.num_whole = first_shared if self.sharing else len(decoding)
        grouped = _grouped(spans)
        self.joined = grouped if self.sharing and not is_fused() else ()
        self.segments: tuple[Segment, ...] = (*(() if self.joined else grouped), *prefixes)
        self.num_decoding = len(decoding)
        self.num_in_slots = sum(map(len, in_slots))
        positions = [position for span in in_slots for position in span.positions]
        positions += [position for chunk in prefixes for position in range(chunk.start, chunk.stop)]
        self.num_tokens = len(positions)
        self._positions = np.array(positions, dtype=np.int32)
        self.positions = mx.array(self._positions)  # (N,)
        self.places = Places.of((span.slot, span.columns) for span in in_slots)
        self._set_windows(windows)

    @cached_property
    def decoding(self) -> tuple[Span, ...]:
        """The decoding rows' tokens."""
        return tuple(span.later(self._num_later) for span in self._first_decoding)

    def next(self) -> Layout:
        """The same decoding rows one token further, in the same slots: made of this one, not anew, as most steps are.

        There must be no other tokens in this step.
        """
        later = copied(self)
        later.__dict__.pop("decoding", None)
        later._num_later += 1
        later._positions = self._positions + 1
        later.positions = mx.array(later._positions)
        later.places = self.places.next()
        later.sharing = self.sharing.next() if self.sharing else None
        later._set_windows(tuple(window.next() for window in self.windows))
        later._derived = {make: moved for make, made in self._derived.items() if (moved := made.next(later))}
        return later

    def _set_windows(self, windows: tuple[Window, ...]) -> None:
        self.windows = windows
        self.whole_windows = [window for window in windows if window.rows.start < self.num_whole]
        self.shared_windows = windows[len(self.whole_windows) :]
        self.lone_windows = self.whole_windows if self.num_whole == self.num_tokens else ()

    def derived(self, make: Callable[[Layout], D]) -> D:
        """What `make` makes of this step: the same for every layer, made when it is first asked for."""
        if make not in self._derived:
            self._derived[make] = make(self)
        made: D = self._derived[make]
        return made


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


def _grouped(spans: Sequence[Span]) -> tuple[Span | PackedPrompts, ...]:
    groups: list[Span | PackedPrompts] = []
    for size, group in groupby(spans, key=lambda span: span.packing_size):
        own = list(group)
        groups += [PackedPrompts(list(map(len, own)))] if size and len(own) > 1 else own
    return tuple(groups)


def copied(what: C) -> C:
    """A copy with the same attributes, made faster than `copy.copy` makes one: there are several in every step."""
    copy = object.__new__(type(what))
    copy.__dict__.update(what.__dict__)
    return copy


def indices_of(values: Iterable[int]) -> mx.array:
    """Unsigned, since mlx takes a quarter longer to scatter where an index might count from the end."""
    return mx.array(list(values), dtype=mx.uint32)


class Window:
    """How the decoding rows of one slab attend to it: all slots up to the last one in use, over one window of columns.

    S slots, B decoding rows, W columns.

    Args:
        slab: which one.
        first: the index of its first row among all decoding rows.
        decoding: spans of one token, by rising slot.

    Attributes:
        views: what is seen of the slab where a token sees itself and so many columns less one before it; `None`: all.
    """

    def __init__(self, slab: int, first: int, decoding: Sequence[Span]) -> None:
        lengths = {span.slot.index: span.stop for span in decoding}
        self.slab = slab
        self.rows, self.num_rows = slice(first, first + len(lengths)), len(lengths)
        self.num_slots = max(lengths) + 1
        has_holes = len(lengths) < self.num_slots
        # What an empty slot's stand-in sees counts for nothing: as much as the shortest row, so that nobody sees more.
        self._shortest, self._longest = min(lengths.values()), max(lengths.values())
        in_slots = [lengths.get(slot, self._shortest) for slot in range(self.num_slots)]
        self._lengths = np.array(in_slots, dtype=np.int32)[:, None, None, None]  # (S, 1, 1, 1)
        rows = {slot: index for index, slot in enumerate(lengths)}
        # (S,) which decoding row stands in for each slot: its own, or any for a slot that is empty
        self.query_rows = mx.array([rows.get(slot, 0) for slot in range(self.num_slots)]) if has_holes else None
        self.result_rows = mx.array(list(lengths)) if has_holes else None  # (B,) where each row's result stands
        self._set_views()

    def next(self) -> Window:
        """The same rows one column further."""
        later = copied(self)
        later._lengths = self._lengths + 1
        later._shortest, later._longest = self._shortest + 1, self._longest + 1
        later._set_views()
        return later

    def _set_views(self) -> None:
        self.views: Made[int | None, View] = Made(partial(View, self._lengths, self._shortest, self._longest))


class View:
    """Columns `first` to `last` of a slab's first S slots, and which of them count.

    Args:
        lengths: (S, 1, 1, 1) how many columns of each slot are in use.
        shortest: the least of them.
        longest: the most.
        sliding: how many of them the last one's token sees, `None` for all.

    Attributes:
        mask: (S, 1, 1, last - first), true where a column counts; `None` where all of them do.
        masks: the same for so many heads of queries. Where attention is a single kernel it is laid out in full, (S,
            heads, 1, last - first), once a step: the kernel would have it copied like that in every layer.
    """

    def __init__(self, lengths: NDArray[np.int32], shortest: int, longest: int, sliding: int | None) -> None:
        self.first, self.last = 0 if sliding is None else max(0, shortest - sliding), longest
        self.mask: mx.array | None = None
        if shortest < longest:
            # Made by the host: a few thousand booleans, instead of kernels that make them.
            columns = np.arange(self.first, longest, dtype=np.int32)
            seen = columns < lengths
            if sliding is not None and sliding < longest:
                seen &= columns >= lengths - sliding
            self.mask = mx.array(seen)
        self.masks: Made[int, mx.array | None] = Made(partial(_mask_for, self.mask))


def _mask_for(mask: mx.array | None, num_heads: int) -> mx.array | None:
    if mask is None or not is_fused() or 1 in (mask.shape[0], num_heads):
        return mask
    num_slots, _, _, width = mask.shape
    return mx.contiguous(mx.broadcast_to(mask, (num_slots, num_heads, 1, width)))


def _windows(decoding: Sequence[Span]) -> tuple[Window, ...]:
    first, windows = 0, []
    for slab, group in groupby(decoding, key=lambda span: span.slot.slab):
        windows.append(Window(slab, first, list(group)))
        first = windows[-1].rows.stop
    return tuple(windows)


class Sharers:
    """Tokens of a step that are behind the same prefix of T tokens.

    Args:
        prefix: which one.
        tokens: (n,) which of the step's tokens.
        columns: how far behind the prefix each of them is.
    """

    def __init__(self, prefix: Prefix, tokens: mx.array, columns: Sequence[int]) -> None:
        self.prefix = prefix
        self.tokens = tokens
        self._columns = columns
        self._masks: dict[int, mx.array | None] = {}

    def next(self) -> Sharers:
        """The same tokens' next ones."""
        return Sharers(self.prefix, self.tokens, [column + 1 for column in self._columns])

    def first_seen(self, sliding: int | None) -> int:
        """The first token of the prefix that any of them sees, each of which sees so many tokens, itself the last; the
        number of the prefix's tokens if none does."""
        return 0 if sliding is None else min(len(self.prefix), max(0, self._first_seen(min(self._columns), sliding)))

    def mask(self, sliding: int | None) -> mx.array | None:
        """(n, T - first seen), true where a token sees one of the prefix; `None` if all see all from there."""
        if sliding is None:
            return None
        if sliding not in self._masks:
            first = self.first_seen(sliding)
            starts = [self._first_seen(column, sliding) for column in self._columns]
            is_ragged = any(start > first for start in starts)
            seen = mx.arange(first, len(self.prefix))[None]
            self._masks[sliding] = seen >= mx.array(starts)[:, None] if is_ragged else None
        return self._masks[sliding]

    def _first_seen(self, column: int, sliding: int) -> int:
        return len(self.prefix) + column + 1 - sliding


class Sharing:
    """Which of n tokens attend to which prefix. `order` (n,) puts the results, group after group and then those of
    tokens that share nothing, into the tokens' order; `None` where they are in it already."""

    def __init__(self, spans: Sequence[Span]) -> None:
        groups: dict[Prefix | None, list[int]] = {}
        for index, prefix in enumerate(chain.from_iterable([span.prefix] * len(span) for span in spans)):
            groups.setdefault(prefix, []).append(index)
        alone = groups.pop(None, [])
        grouped = list(chain.from_iterable(groups.values()))
        columns = list(chain.from_iterable(span.columns for span in spans))
        self.groups = tuple(
            Sharers(prefix, mx.array(tokens), [columns[token] for token in tokens])
            for prefix, tokens in groups.items()
            if prefix
        )
        self.num_tokens = len(grouped) + len(alone)
        self.num_alone = len(alone)
        order = [*grouped, *alone]
        in_order = order == sorted(order)
        self.order = None if in_order else mx.array(sorted(range(len(order)), key=order.__getitem__))

    def next(self) -> Sharing:
        """The same tokens' next ones."""
        later = copied(self)
        later.groups = tuple(group.next() for group in self.groups)
        return later
