"""A KV cache of fixed slots: every row's keys and values lie in a slot of their own, from column 0, without padding.

Plugs into mlx-lm's models where their own caches would: a model asks it for `offset` (positions for RoPE), hands it
new keys and values (`update_and_fetch`), and attends through it (`attend`). All tokens of a step, one of each decoding
row and many of each prompt, go through the model side by side as rows of length one, so nothing is padded.
A row that leaves costs nothing, and one that comes takes its slot over in place. A prefix that rows share is stored
once beside the slots; its rows attend to it together.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import mlx.core as mx

from mlxq_worker.engine.attention import Partial, attend, attend_in_part
from mlxq_worker.engine.prefix import Prefix
from mlxq_worker.engine.scheduler import PrefixPiece

_COLUMN_STEP = 256
OUTLIER_COST = 384
"""What attending to one row by itself costs beside its columns, as a number of columns."""


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of one row that are in this step: columns `start` to `stop` of its slot, behind its prefix if any."""

    slot: int
    start: int
    stop: int
    prefix: Prefix | None = None

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def positions(self) -> range:
        """The tokens' positions in their sequence."""
        before = len(self.prefix) if self.prefix else 0
        return range(before + self.start, before + self.stop)


class Layout:
    """Where the tokens of one step go: first one token of each decoding row, then the spans of prompts, then the pieces
    of prefixes. N tokens in all, M of them in slots, B of those decoding.

    Args:
        decoding: spans of one token, by rising slot.
        spans: the prompt pieces, in the order of their tokens.
        prefixes: the prefix pieces, in the order of their tokens.
    """

    def __init__(
        self, decoding: Sequence[Span], spans: Sequence[Span] = (), prefixes: Sequence[PrefixPiece] = ()
    ) -> None:
        in_slots = (*decoding, *spans)
        self.prefixes = tuple(prefixes)
        self.pieces: tuple[Span | PrefixPiece, ...] = (*spans, *prefixes)
        self.num_decoding = len(decoding)
        self.num_in_slots = sum(map(len, in_slots))
        self.num_slots = max((span.slot for span in in_slots), default=-1) + 1
        self.num_columns = max((span.stop for span in in_slots), default=0)
        self.slots = mx.array([span.slot for span in in_slots for _ in range(len(span))])  # (M,)
        self.columns = mx.array([column for span in in_slots for column in range(span.start, span.stop)])  # (M,)
        positions = [position for span in in_slots for position in span.positions]
        positions += [position for piece in prefixes for position in range(piece.start, piece.stop)]
        self.positions = mx.array(positions)  # (N,)
        self.windows = Windows(decoding) if decoding else None
        self.sharing = Sharing(decoding) if any(span.prefix for span in decoding) else None


class Windows:
    """How the decoding rows attend to their slots: all slots up to the last one in use over one window of columns, and
    the few rows that are much longer than the others by themselves, so that these don't pay for that length.

    S slots in the window's batch, B decoding rows.
    """

    def __init__(self, decoding: Sequence[Span]) -> None:
        lengths = {span.slot: span.stop for span in decoding}
        self.num_slots = max(lengths) + 1
        self.width = window_width(list(lengths.values()), self.num_slots)
        place = {slot: index for index, slot in enumerate(lengths)}
        self.outliers = tuple(
            Outlier(slot, place[slot], length) for slot, length in lengths.items() if length > self.width
        )
        in_window = [lengths.get(slot, 1) for slot in range(self.num_slots)]
        is_ragged = any(length != self.width for length in in_window)
        columns = mx.arange(self.width)[None, None, None]  # (1, 1, 1, W)
        self.mask = columns < mx.array(in_window)[:, None, None, None] if is_ragged else None  # (S, 1, 1, W)
        has_holes = len(lengths) < self.num_slots
        # (S,) which decoding row stands in for each slot: its own, or any for a slot that is empty
        self.query_rows = mx.array([place.get(slot, 0) for slot in range(self.num_slots)]) if has_holes else None
        results = {outlier.slot: self.num_slots + index for index, outlier in enumerate(self.outliers)}
        # (B,) where each decoding row's result stands among the window's and the outliers'
        self.result_rows = (
            mx.array([results.get(slot, slot) for slot in lengths]) if has_holes or self.outliers else None
        )


@dataclass(frozen=True, slots=True)
class Outlier:
    """A decoding row that attends by itself: its slot, its index among the decoding rows, its columns."""

    slot: int
    place: int
    length: int


class Sharing:
    """Which decoding rows attend to which prefix. `order` (B,) puts the results, group after group and then those of
    rows that share nothing, into the rows' order; `None` where they are in it already."""

    def __init__(self, decoding: Sequence[Span]) -> None:
        groups: dict[Prefix, list[int]] = {}
        for index, span in enumerate(decoding):
            if span.prefix:
                groups.setdefault(span.prefix, []).append(index)
        grouped = [index for group in groups.values() for index in group]
        alone = [index for index, span in enumerate(decoding) if not span.prefix]
        self.groups = {prefix: mx.array(group) for prefix, group in groups.items()}  # (rows of the group,)
        self.num_alone = len(alone)
        order = [*grouped, *alone]
        in_order = order == sorted(order)
        self.order = None if in_order else mx.array([order.index(index) for index in range(len(order))])


def window_width(lengths: Sequence[int], num_slots: int) -> int:
    """The number of columns that makes the decoding step cheapest: `num_slots` times the window, plus every longer
    row by itself."""
    ordered = sorted(lengths, reverse=True)
    best_width, best_cost = ordered[0], num_slots * ordered[0]
    outlier_cost = 0
    for length, next_length in pairwise(ordered):
        outlier_cost += length + OUTLIER_COST
        if (cost := num_slots * next_length + outlier_cost) < best_cost:
            best_width, best_cost = next_length, cost
    return best_width


class SlotCache:
    """One layer's keys and values. H heads of keys and values, T columns, D numbers a head."""

    def __init__(self) -> None:
        self._layout: Layout | None = None
        self._keys: mx.array | None = None  # (slots, H, T, D)
        self._values: mx.array | None = None  # (slots, H, T, D)
        self._prefixes: dict[Prefix, tuple[mx.array, mx.array]] = {}  # (1, H, tokens, D) each

    def __repr__(self) -> str:
        num_slots, _, num_columns, _ = self._keys.shape if self._keys is not None else (0, 0, 0, 0)
        return f"SlotCache({num_slots} slots of {num_columns} columns, {len(self._prefixes)} prefixes)"

    @property
    def layout(self) -> Layout:
        assert self._layout is not None, "begin_step comes first"
        return self._layout

    @property
    def offset(self) -> mx.array:
        """(N,) the position of every token of the step in its own sequence: what RoPE rotates by."""
        return self.layout.positions

    def begin_step(self, layout: Layout) -> None:
        """Say where the tokens of the next forward pass go."""
        self._layout = layout

    def make_mask(self, *_: Any, **__: Any) -> None:
        """No mask for the model to apply: `attend` knows who sees what."""

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write the step's keys and values, each (N, H, 1, D), where they belong; the model gets them back as they are.

        A scatter, not a slice assignment: mlx does it in place while the step before is still being computed.
        """
        layout, end = self.layout, self.layout.num_in_slots
        if end:
            self._keys, self._values = self._grown(self._keys, keys), self._grown(self._values, values)
            self._keys[layout.slots, :, layout.columns] = keys[:end, :, 0]
            self._values[layout.slots, :, layout.columns] = values[:end, :, 0]
        for piece in layout.prefixes:
            start, end = end, end + len(piece)
            own = (_side_by_side(keys[start:end]), _side_by_side(values[start:end]))
            self._prefixes[piece.prefix] = self._behind(self._begun(piece.prefix), own)
        return keys, values

    def attend(self, queries: mx.array, scale: float) -> mx.array:
        """Attention of every token to its own sequence up to itself: (N, heads, 1, D) to (N, heads, 1, D)."""
        layout, end = self.layout, self.layout.num_decoding
        parts = []
        if layout.windows is not None and layout.sharing is not None:
            parts.append(self._attend_sharing(queries[:end], layout.windows, layout.sharing, scale))
        elif layout.windows is not None:
            parts.append(self._attend_decoding(queries[:end], layout.windows, scale))
        for piece in layout.pieces:
            start, end = end, end + len(piece)
            parts.append(self._attend_piece(queries[start:end], piece, scale))
        return parts[0] if len(parts) == 1 else mx.concatenate(parts)

    def move(self, source: int, target: int) -> None:
        """Copy a slot's row to another slot."""
        if self._keys is not None and self._values is not None:
            where, what = mx.array([target]), mx.array([source])
            self._keys[where] = self._keys[what]
            self._values[where] = self._values[what]

    def wipe(self, slots: Sequence[int]) -> None:
        """Forget what rows that have left wrote here: a masked key counts for nothing, but a masked value is
        multiplied by zero, and that would pass on a NaN."""
        if self._values is not None and (known := [slot for slot in slots if slot < self._values.shape[0]]):
            self._values[mx.array(known)] = mx.zeros((1,), self._values.dtype)

    def fit(self, num_slots: int, num_columns: int) -> None:
        """Free what is far more than these many slots and columns; nothing at all is needed for no slots."""
        if num_slots == 0:
            self._keys = self._values = None
        elif self._keys is not None and self._values is not None:
            size = _room(num_slots), _rounded(num_columns)
            if size[0] * size[1] * 2 <= self._keys.shape[0] * self._keys.shape[2]:
                self._keys = mx.contiguous(self._keys[: size[0], :, : size[1]])
                self._values = mx.contiguous(self._values[: size[0], :, : size[1]])

    def evict(self, prefix: Prefix) -> None:
        """Free a prefix."""
        self._prefixes.pop(prefix, None)

    def _in_slots(self, first: int, last: int, num_columns: int) -> tuple[mx.array, mx.array]:
        """Keys and values, each (last - first, H, num_columns, D)."""
        assert self._keys is not None, "update_and_fetch comes first"
        assert self._values is not None
        return self._keys[first:last, :, :num_columns], self._values[first:last, :, :num_columns]

    def _attend_decoding(self, queries: mx.array, windows: Windows, scale: float) -> mx.array:
        results = [
            attend(own, keys, values, scale, mask) for own, keys, values, mask in self._decoding_parts(queries, windows)
        ]
        result = results[0] if len(results) == 1 else mx.concatenate(results)
        return result if windows.result_rows is None else result[windows.result_rows]

    def _attend_sharing(self, queries: mx.array, windows: Windows, sharing: Sharing, scale: float) -> mx.array:
        """As `_attend_decoding`, for rows behind prefixes: each row's part in its slot and its part in the prefix."""
        own = [
            attend_in_part(own, keys, values, scale, mask)
            for own, keys, values, mask in self._decoding_parts(queries, windows)
        ]
        in_slot = Partial.joined(own) if windows.result_rows is None else Partial.joined(own)[windows.result_rows]
        shared = [self._attend_prefix(queries[rows], prefix, scale) for prefix, rows in sharing.groups.items()]
        if sharing.num_alone:
            shared.append(shared[0].nothing(sharing.num_alone))
        in_prefix = Partial.joined(shared) if sharing.order is None else Partial.joined(shared)[sharing.order]
        return in_slot.merged(in_prefix).result(queries.dtype)

    def _decoding_parts(
        self, queries: mx.array, windows: Windows
    ) -> Iterator[tuple[mx.array, mx.array, mx.array, mx.array | None]]:
        """Queries, the keys and values in the slots that they attend to, and a mask: the window, then each outlier."""
        in_slots = queries if windows.query_rows is None else queries[windows.query_rows]  # (S, heads, 1, D)
        yield in_slots, *self._in_slots(0, windows.num_slots, windows.width), windows.mask
        for row in windows.outliers:
            own = self._in_slots(row.slot, row.slot + 1, row.length)
            yield queries[row.place : row.place + 1], *own, None

    def _attend_prefix(self, queries: mx.array, prefix: Prefix, scale: float) -> Partial:
        """All rows of a group at once, as if they were one row with many queries: (b, heads, 1, D)."""
        keys, values = self._prefixes[prefix]
        return attend_in_part(_side_by_side(queries), keys, values, scale).taken_apart()

    def _attend_piece(self, queries: mx.array, piece: Span | PrefixPiece, scale: float) -> mx.array:
        if isinstance(piece, PrefixPiece):
            keys, values = self._prefixes[piece.prefix]
        else:
            own = self._in_slots(piece.slot, piece.slot + 1, piece.stop)
            keys, values = self._behind(self._prefixes[piece.prefix], own) if piece.prefix else own
        result = attend(_side_by_side(queries), keys, values, scale, "causal")
        return result[0].swapaxes(0, 1)[:, :, None]

    def _begun(self, prefix: Prefix) -> tuple[mx.array, mx.array] | None:
        """What there is of a prefix: at first what it takes over from its base."""
        if prefix in self._prefixes or prefix.base is None:
            return self._prefixes.get(prefix)
        return self._prefixes[prefix.base]

    @staticmethod
    def _behind(
        before: tuple[mx.array, mx.array] | None, after: tuple[mx.array, mx.array]
    ) -> tuple[mx.array, mx.array]:
        if before is None:
            return after
        return mx.concatenate([before[0], after[0]], axis=2), mx.concatenate([before[1], after[1]], axis=2)

    def _grown(self, own: mx.array | None, new: mx.array) -> mx.array:
        """`own` with room for all slots and columns of the step; `new` (N, H, 1, D) tells the other sizes."""
        num_slots, num_columns = _room(self.layout.num_slots), _rounded(self.layout.num_columns)
        if own is None:
            return mx.zeros((num_slots, new.shape[1], num_columns, new.shape[3]), new.dtype)
        if own.shape[0] >= num_slots and own.shape[2] >= num_columns:
            return own
        more_slots, more_columns = max(0, num_slots - own.shape[0]), max(0, num_columns - own.shape[2])
        return mx.pad(own, [(0, more_slots), (0, 0), (0, more_columns), (0, 0)])


def _rounded(num_columns: int) -> int:
    return -(-num_columns // _COLUMN_STEP) * _COLUMN_STEP


def _room(num_slots: int) -> int:
    """The next power of two: slots are added one by one, and every growth copies."""
    return 1 << (num_slots - 1).bit_length()


def _side_by_side(tokens: mx.array) -> mx.array:
    """Tokens that are rows of length one, as one row: (n, heads, 1, D) to (1, heads, n, D)."""
    return tokens[:, :, 0].swapaxes(0, 1)[None]


def route_attention(model: Any) -> bool:
    """Make the attention of the module that defines `model` go through a `SlotCache` where it is given one.

    mlx-lm's models call one function of their module for attention; with any other cache it does what it did.
    Returns whether the module has that function.
    """
    module: Any = sys.modules[type(model).__module__]
    original = getattr(module, "scaled_dot_product_attention", None)
    if original is None or hasattr(original, "routes_slots"):
        return original is not None

    def attend(queries: mx.array, keys: mx.array, values: mx.array, cache: Any, scale: float, **options: Any) -> Any:
        if isinstance(cache, SlotCache):
            if options.get("sinks") is not None:
                raise NotImplementedError("slots don't know attention sinks")
            return cache.attend(queries, scale)
        return original(queries, keys, values, cache=cache, scale=scale, **options)

    attend.routes_slots = True  # type: ignore[attr-defined]
    module.scaled_dot_product_attention = attend
    return True
