"""How mlx-lm's models see slots: a cache that plugs in where their own would, and attends.

A model asks it for `offset` (positions for RoPE), hands it new keys and values (`update_and_fetch`), and attends
through it (`attend`). All tokens of a step, one of each decoding row and many of each prompt, go through the model side
by side as rows of length one, so nothing is padded. Rows attend together to a prefix that they share, and each to its
own slot. What is stored, and how, is `kvcache/slots`' business.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, TypeVar

import mlx.core as mx

from mlxq_worker.engine.kvcache.prefix import Prefix
from mlxq_worker.engine.kvcache.slots import Slots, joined
from mlxq_worker.engine.plan import PrefixChunk
from mlxq_worker.engine.runners.attention import Partial, attend, attend_causally_in_parts, attend_in_part, taken_apart
from mlxq_worker.engine.runners.layout import Layout, PackedPrompts, Segment, Sharing, Span, Window


class SlotCache:
    """One layer over its slots. H heads of keys and values, D numbers a head, N tokens in a step."""

    def __init__(self) -> None:
        self.slots = Slots()
        self._layout: Layout | None = None
        self.offset = mx.array([])
        """(N,) the position of every token of the step in its own sequence: what RoPE rotates by"""

    def __repr__(self) -> str:
        return f"SlotCache({self.slots!r})"

    @property
    def layout(self) -> Layout:
        assert self._layout is not None, "begin_step comes first"
        return self._layout

    def begin_step(self, layout: Layout) -> None:
        """Say where the tokens of the next forward pass go."""
        self._layout = layout
        self.offset = layout.positions

    def make_mask(self, *_: Any, **__: Any) -> None:
        """No mask for the model to apply: `attend` knows who sees what."""

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write the step's keys and values, each (N, H, 1, D), where they belong; the model gets them back as is."""
        end = self.layout.num_in_slots
        own = (keys, values) if end == keys.shape[0] else (keys[:end], values[:end])
        self.slots.write(self.layout.writes, own[0].squeeze(2), own[1].squeeze(2))
        for chunk in self.layout.prefixes:
            start, end = end, end + len(chunk)
            self.slots.extend_prefix(chunk.prefix, _side_by_side(keys[start:end]), _side_by_side(values[start:end]))
        for prefix, slots in self.layout.copied_prefixes.items():
            self.slots.copy_prefix(prefix, slots)
        return keys, values

    def attend(self, queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
        """Attention of every token to its own sequence up to itself: (N, heads, 1, D) to (N, heads, 1, D).

        `keys` and `values` are those of the step's tokens, (N, H, 1, D), which have been written already.
        """
        layout, end = self.layout, self.layout.num_whole
        parts = [self._attend_window(queries, window, scale) for window in layout.windows]
        if layout.sharing is not None:
            own = slice(end, end + layout.sharing.num_tokens)
            parts.append(self._attend_sharing(queries[own], keys[own], values[own], layout.sharing, scale))
            end = own.stop
        for segment in layout.segments:
            start, end = end, end + len(segment)
            parts.append(self._attend_segment(segment, queries[start:end], keys[start:end], values[start:end], scale))
        return parts[0] if len(parts) == 1 else mx.concatenate(parts)

    def _attend_window(self, queries: mx.array, window: Window, scale: float) -> mx.array:
        own, keys, values = self._seen_in(window, queries)
        result = attend(own, keys, values, scale, window.mask_of(own.shape[1]))
        return result if window.result_rows is None else result[window.result_rows]

    def _attend_sharing(
        self, queries: mx.array, keys: mx.array, values: mx.array, sharing: Sharing, scale: float
    ) -> mx.array:
        """Attention of tokens behind prefixes: each one's part in its slot and its part in the prefix, merged."""
        in_slot = Partial.joined(list(self._parts_in_slots(queries, keys, values, scale)))
        shared = [self._attend_prefix(queries[tokens], prefix, scale) for prefix, tokens in sharing.groups.items()]
        if sharing.num_alone:
            shared.append(shared[0].nothing(sharing.num_alone))
        in_prefix = Partial.joined(shared) if sharing.order is None else Partial.joined(shared)[sharing.order]
        return in_slot.merged(in_prefix).result(queries.dtype)

    def _parts_in_slots(self, queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> Iterator[Partial]:
        for window in self.layout.shared_windows:
            own, seen_keys, seen_values = self._seen_in(window, queries)
            part = attend_in_part(own, seen_keys, seen_values, scale, window.mask)
            yield part if window.result_rows is None else part[window.result_rows]
        end = self.layout.num_decoding
        for segment in self.layout.joined:
            start, end = end, end + len(segment)
            sides = self._side_by_side(segment, queries[start:end], keys[start:end], values[start:end])
            for part in attend_causally_in_parts(*sides, scale):
                yield _kept(segment, part.taken_apart())

    def _seen_in(self, window: Window, queries: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """The window's queries out of those of all decoding rows, and the keys and values that they see."""
        own = queries if window.num_rows == queries.shape[0] else queries[window.rows]
        own = own if window.query_rows is None else own[window.query_rows]  # (S, heads, 1, D)
        return own, *self.slots.read(window.slab, 0, window.num_slots, window.width)

    def _attend_prefix(self, queries: mx.array, prefix: Prefix, scale: float) -> Partial:
        """All tokens of a group at once, as if they were one row with many queries: (n, heads, 1, D)."""
        keys, values = self.slots.read_prefix(prefix)
        return attend_in_part(_side_by_side(queries), keys, values, scale).taken_apart()

    def _attend_segment(
        self, segment: Segment, queries: mx.array, keys: mx.array, values: mx.array, scale: float
    ) -> mx.array:
        """Attention of a segment's tokens, (n, heads, 1, D), to themselves and what is before them."""
        queries, keys, values = self._side_by_side(segment, queries, keys, values)
        if isinstance(segment, Span) and segment.prefix:
            keys, values = joined(self.slots.read_prefix(segment.prefix), (keys, values))
        return _kept(segment, taken_apart(attend(queries, keys, values, scale, "causal")))

    def _side_by_side(
        self, segment: Segment, queries: mx.array, keys: mx.array, values: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        """A segment's queries and what they see in its slot, as rows of several tokens: (B, heads, Q, D) and, twice,
        (B, H, T, D)."""
        if isinstance(segment, PackedPrompts):
            return segment.side_by_side(queries), segment.side_by_side(keys), segment.side_by_side(values)
        if isinstance(segment, PrefixChunk):
            return _side_by_side(queries), *self.slots.read_prefix(segment.prefix)
        return _side_by_side(queries), *self._slot_of(segment)

    def _slot_of(self, span: Span) -> tuple[mx.array, mx.array]:
        """A row's keys and values behind its prefix up to the end of a span, (1, H, columns, D) each."""
        index = span.slot.index
        return self.slots.read(span.slot.slab, index, index + 1, span.stop)


R = TypeVar("R", mx.array, Partial)


def _kept(segment: Segment, tokens: R) -> R:
    """Without what only fills up."""
    return tokens if not isinstance(segment, PackedPrompts) or segment.kept is None else tokens[segment.kept]


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
            return cache.attend(queries, keys, values, scale)
        return original(queries, keys, values, cache=cache, scale=scale, **options)

    attend.routes_slots = True  # type: ignore[attr-defined]
    module.scaled_dot_product_attention = attend
    return True
