"""A KV cache of fixed slots: every row's keys and values lie in a slot of their own, from column 0, without padding.

Plugs into mlx-lm's models where their own caches would: a model asks it for `offset` (positions for RoPE), hands it
new keys and values (`update_and_fetch`), and attends through it (`attend`). All tokens of a step, one of each decoding
row and many of each prompt, go through the model side by side as rows of length one, so nothing is padded.
A row that leaves costs nothing, and one that comes takes its slot over in place.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import mlx.core as mx

_COLUMN_STEP = 256
OUTLIER_COST = 384
"""What attending to one row by itself costs beside its columns, as a number of columns."""


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `start` to `stop` of the sequence in `slot`; they are all in this step."""

    slot: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Layout:
    """Where the tokens of one step go: first one token for each decoding slot, then the spans of prompts.

    N tokens in all, `num_decoding` of them decoding.

    Args:
        decoding: (slot, position) of each decoding row's token, by rising slot.
        spans: the prompt pieces, in the order of their tokens.
    """

    def __init__(self, decoding: Sequence[tuple[int, int]], spans: Sequence[Span]) -> None:
        self.spans = tuple(spans)
        self.num_decoding = len(decoding)
        slots = [slot for slot, _ in decoding] + [span.slot for span in spans for _ in range(len(span))]
        positions = [position for _, position in decoding]
        positions += [position for span in spans for position in range(span.start, span.stop)]
        self.num_columns = max(positions) + 1
        self.slots = mx.array(slots)  # (N,)
        self.positions = mx.array(positions)  # (N,)
        self.windows = Windows(decoding) if decoding else None


class Windows:
    """How the decoding rows attend: all slots up to the last one in use over one window of columns, and the few
    rows that are much longer than the others by themselves, so that these don't pay for that length.

    S slots in the window's batch, B decoding rows.
    """

    def __init__(self, decoding: Sequence[tuple[int, int]]) -> None:
        lengths = {slot: position + 1 for slot, position in decoding}
        self.num_slots = max(lengths) + 1
        self.width = window_width(list(lengths.values()), self.num_slots)
        self.outliers = tuple(slot for slot, length in lengths.items() if length > self.width)
        self.lengths = {slot: lengths[slot] for slot in self.outliers}
        in_window = [lengths.get(slot, 1) for slot in range(self.num_slots)]
        is_ragged = any(length != self.width for length in in_window)
        columns = mx.arange(self.width)[None, None, None]  # (1, 1, 1, W)
        self.mask = columns < mx.array(in_window)[:, None, None, None] if is_ragged else None  # (S, 1, 1, W)
        place = {slot: index for index, slot in enumerate(lengths)}
        has_holes = len(lengths) < self.num_slots
        # (S,) which decoding row stands in for each slot: its own, or any for a slot that is empty
        self.query_rows = mx.array([place.get(slot, 0) for slot in range(self.num_slots)]) if has_holes else None
        results = {slot: self.num_slots + index for index, slot in enumerate(self.outliers)}
        # (B,) where each decoding row's result stands among the window's and the outliers'
        self.result_rows = (
            mx.array([results.get(slot, slot) for slot in lengths]) if has_holes or self.outliers else None
        )
        self.places = place


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

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._layout: Layout | None = None
        self._keys: mx.array | None = None  # (slots, H, T, D)
        self._values: mx.array | None = None  # (slots, H, T, D)

    @property
    def layout(self) -> Layout:
        assert self._layout is not None, "begin_step comes first"
        return self._layout

    @property
    def offset(self) -> mx.array:
        """(N,) the position of every token of the step in its own sequence: what RoPE rotates by."""
        return self.layout.positions

    @property
    def arrays(self) -> list[mx.array]:
        return [array for array in (self._keys, self._values) if array is not None]

    def begin_step(self, layout: Layout) -> None:
        """Say where the tokens of the next forward pass go."""
        self._layout = layout

    def make_mask(self, *_: Any, **__: Any) -> None:
        """No mask for the model to apply: `attend` knows who sees what."""

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write the step's keys and values, each (N, H, 1, D), into their slots; the model gets them back as they are.

        A scatter, not a slice assignment: mlx does it in place while the step before is still being computed.
        """
        own_keys, own_values = self._with_room_for(keys, values)
        own_keys[self.layout.slots, :, self.layout.positions] = keys[:, :, 0]
        own_values[self.layout.slots, :, self.layout.positions] = values[:, :, 0]
        return keys, values

    def attend(self, queries: mx.array, scale: float) -> mx.array:
        """Attention of every token to its own sequence up to itself: (N, heads, 1, D) to (N, heads, 1, D)."""
        parts = []
        if self.layout.windows is not None:
            parts.append(self._attend_decoding(queries[: self.layout.num_decoding], self.layout.windows, scale))
        start = self.layout.num_decoding
        for span in self.layout.spans:
            parts.append(self._attend_span(queries[start : start + len(span)], span, scale))
            start += len(span)
        return parts[0] if len(parts) == 1 else mx.concatenate(parts)

    def move(self, source: int, target: int) -> None:
        """Copy a slot's row to another slot."""
        if self._keys is not None and self._values is not None:
            where, what = mx.array([target]), mx.array([source])
            self._keys[where] = self._keys[what]
            self._values[where] = self._values[what]

    def _attend_decoding(self, queries: mx.array, windows: Windows, scale: float) -> mx.array:
        own_keys, own_values = self.arrays
        in_slots = queries if windows.query_rows is None else queries[windows.query_rows]  # (S, heads, 1, D)
        results = [
            mx.fast.scaled_dot_product_attention(
                in_slots,
                own_keys[: windows.num_slots, :, : windows.width],
                own_values[: windows.num_slots, :, : windows.width],
                scale=scale,
                mask=windows.mask,
            )
        ]
        for slot in windows.outliers:
            place, length = windows.places[slot], windows.lengths[slot]
            results.append(
                mx.fast.scaled_dot_product_attention(
                    queries[place : place + 1],
                    own_keys[slot : slot + 1, :, :length],
                    own_values[slot : slot + 1, :, :length],
                    scale=scale,
                )
            )
        result = results[0] if len(results) == 1 else mx.concatenate(results)
        return result if windows.result_rows is None else result[windows.result_rows]

    def _attend_span(self, queries: mx.array, span: Span, scale: float) -> mx.array:
        own_keys, own_values = self.arrays
        result = mx.fast.scaled_dot_product_attention(
            queries[:, :, 0].swapaxes(0, 1)[None],  # (1, heads, tokens, D)
            own_keys[span.slot : span.slot + 1, :, : span.stop],
            own_values[span.slot : span.slot + 1, :, : span.stop],
            scale=scale,
            mask="causal",
        )
        return result[0].swapaxes(0, 1)[:, :, None]

    def _with_room_for(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self._keys = self._grown(self._keys, keys)
        self._values = self._grown(self._values, values)
        return self._keys, self._values

    def _grown(self, own: mx.array | None, new: mx.array) -> mx.array:
        num_columns = -(-self.layout.num_columns // _COLUMN_STEP) * _COLUMN_STEP
        if own is None:
            return mx.zeros((self._num_slots, new.shape[1], num_columns, new.shape[3]), new.dtype)
        if own.shape[2] >= num_columns:
            return own
        return mx.pad(own, [(0, 0), (0, 0), (0, num_columns - own.shape[2]), (0, 0)])


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
