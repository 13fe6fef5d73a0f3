"""How mlx-lm's models see slots: a cache that plugs in where their own would, and attends.

A model asks it for `offset` (positions for RoPE), hands it new keys and values (`update_and_fetch`), and attends
through it (`attend`). All tokens of a step, one of each decoding row and many of each prompt, go through the model side
by side as rows of length one, so nothing is padded. Rows attend together to a prefix that they share, and each to its
own slot. What is stored, and how, is `kvcache/slots`' business.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVar

import mlx.core as mx

from mlxq_worker.engine.kvcache.prefix import Prefix
from mlxq_worker.engine.kvcache.slot_allocator import Changes, Slot
from mlxq_worker.engine.kvcache.slots import Slots, joined
from mlxq_worker.engine.plan import PrefixChunk
from mlxq_worker.engine.runners.attention import (
    Partial,
    attend,
    attend_causally_in_parts,
    attend_in_part,
    attention_of_both,
    taken_apart,
)
from mlxq_worker.engine.runners.step.layout import Layout
from mlxq_worker.engine.runners.step.sharing import Sharers, Sharing
from mlxq_worker.engine.runners.step.slab_attention import LayerKind, attend_in_slab
from mlxq_worker.engine.runners.step.spans import PackedPrompts, Segment, Span

_layers: ContextVar[Sequence[SlotCache]] = ContextVar("layers", default=())
"""Those of the step that is being computed."""
_NOTHING = (None, None)


@contextmanager
def step_of_layers(layers: Sequence[SlotCache]) -> Iterator[None]:
    """Within the block each layer remembers which keys and values it wrote: some models hand those to later layers,
    without the cache that they are of. Nobody holds them for longer: MLX is to free them when it has used them."""
    token = _layers.set(layers)
    try:
        yield
    finally:
        _layers.reset(token)
        for layer in layers:
            layer.written = _NOTHING


class InSlots:
    """What every layer does whose keys and values lie in slots."""

    def __init__(self) -> None:
        self.slots = Slots()

    def arrange(self, changes: Changes) -> None:
        """Bring the slabs to where the rows of the next steps lie."""
        self.slots.arrange(changes)

    def copy(self, slots: Sequence[tuple[Slot, Slot]], rows: Sequence[tuple[int, int]]) -> None:
        """Copy rows to other slots."""
        self.slots.copy(slots)

    def evict(self, prefix: Prefix) -> None:
        """Free a prefix."""
        self.slots.evict(prefix)


class SlotCache(InSlots):
    """One layer over its slots. H heads of keys and values, D numbers a head, N tokens in a step.

    Args:
        sliding: how many tokens a token sees, itself the last of them; `None` for all up to itself.
    """

    def __init__(self, sliding: int | None = None) -> None:
        super().__init__()
        self._sliding = sliding
        self._mask = slot_mask(sliding)
        self.written: tuple[mx.array, mx.array] | tuple[None, None] = _NOTHING
        self.layout = Layout([])
        self.offset = mx.array([])
        """(N,) the position of every token of the step in its own sequence: what RoPE rotates by"""

    def __repr__(self) -> str:
        return f"SlotCache({self.slots!r})"

    @property
    def arrays(self) -> list[mx.array]:
        """Its keys and values are computed with the tokens that see them."""
        return []

    def begin_step(self, layout: Layout) -> None:
        """Say where the tokens of the next forward pass go."""
        self.layout = layout
        self.offset = layout.positions

    def make_mask(self, *_: Any, window_size: int | None = None, **__: Any) -> SlotMask:
        """What the model is to hand to `attend`, which knows who sees what."""
        return slot_mask(window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write the step's keys and values, each (N, H, 1, D), where they belong; the model gets them back as is."""
        layout, pool = self.layout, self.slots.pool
        if pool is None or layout.prefixes or layout.copied_prefixes:
            self._write_beside_prefixes(keys, values)
        else:
            pool.write(layout.places, keys, values)  # as in nearly all steps
        self.written = keys, values
        return keys, values

    def _write_beside_prefixes(self, keys: mx.array, values: mx.array) -> None:
        """Write what belongs to slots there and what to prefixes behind what there is of them; then copy prefixes to
        the slots of rows that begin with them."""
        end = self.layout.num_in_slots
        if end:
            self.slots.write(self.layout.places, keys[:end], values[:end])
        for chunk in self.layout.prefixes:
            start, end = end, end + len(chunk)
            self.slots.extend_prefix(chunk.prefix, _side_by_side(keys[start:end]), _side_by_side(values[start:end]))
        for prefix, slots in self.layout.copied_prefixes.items():
            self.slots.copy_prefix(prefix, slots)

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """The step's keys and values, for a later layer that has none of its own."""
        keys, values = self.written
        assert keys is not None, "the layer that writes them comes first"
        assert values is not None
        return keys, values

    def attend(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        scale: float,
        mask: SlotMask | None = None,
        sinks: mx.array | None = None,
    ) -> mx.array:
        """Attention of every token to its own sequence up to itself: (N, heads, 1, D) to (N, heads, 1, D).

        `keys` and `values` are those of the step's tokens, (N, H, 1, D), which have been written already.
        """
        sliding = self._sliding
        if mask is not None and mask is not self._mask:
            if not isinstance(mask, SlotMask):
                raise NotImplementedError("the model masks by itself")
            sliding = one_window(sliding, mask.sliding)
        layout = self.layout
        if len(layout.lone_windows) == 1:  # as in nearly all steps
            (window,) = layout.lone_windows
            view = window.views[sliding]
            pool, own_mask = self.slots.written, None if view.mask is None else view.masks[queries.shape[1]]
            return attend_in_slab(window.slab_rows, pool, view.cuts[pool.form], queries, scale, own_mask, sinks)
        if layout.traced is not None:
            pool = self.slots.written
            attention, masks = layout.traced.of[LayerKind(pool.form, scale, sliding, queries.shape[1])]
            return attention(queries, *pool.arrays, masks, sinks)
        return _Attention(layout, self.slots, scale, sliding, sinks).of(queries, keys, values)


@dataclass(frozen=True, slots=True)
class SlotMask:
    """Stands where a model expects a mask. `sliding` is how many tokens a token sees, as far as the model says so."""

    sliding: int | None = None


@cache
def slot_mask(sliding: int | None) -> SlotMask:
    """One mask for all layers that see as much."""
    return SlotMask(sliding)


def one_window(of_cache: int | None, of_mask: int | None) -> int | None:
    """How many tokens a token sees, by a layer's cache and by its mask, each of which may leave it to the other.

    Raises:
        NotImplementedError: they differ: then what mlx-lm computes depends on how a prompt is cut into chunks.
    """
    if of_cache is not None and of_mask is not None and of_cache != of_mask:
        raise NotImplementedError(f"a window is of {of_cache} tokens in the cache and of {of_mask} in the mask")
    return of_mask if of_cache is None else of_cache


@dataclass(frozen=True, slots=True)
class _Attention:
    """How the tokens of one step attend in one layer."""

    layout: Layout
    slots: Slots
    scale: float
    sliding: int | None
    sinks: mx.array | None

    def of(self, queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
        """(N, heads, 1, D)."""
        layout, end = self.layout, self.layout.num_whole
        parts = []
        for window in layout.whole_windows:
            pool, view, own = self.slots.written, window.views[self.sliding], queries[window.rows]
            seen, mask = view.cuts[pool.form], view.masks[own.shape[1]]
            parts.append(attend_in_slab(window.slab_rows, pool, seen, own, self.scale, mask, self.sinks))
        if layout.sharing is not None:
            start, end = end, end + layout.sharing.num_tokens
            parts.append(self._sharing(queries, keys, values, layout.sharing, slice(start, end)))
        for segment in layout.segments:
            start, end = end, end + len(segment)
            parts.append(self._segment(segment, queries[start:end], keys[start:end], values[start:end]))
        return parts[0] if len(parts) == 1 else mx.concatenate(parts)

    def _sharing(
        self, queries: mx.array, keys: mx.array, values: mx.array, sharing: Sharing, tokens: slice
    ) -> mx.array:
        """Attention of those of the step's `tokens` that share: each one's part in its slot and its part in the prefix,
        merged."""
        in_slot = Partial.joined(list(self._parts_in_slots(queries, keys, values)))
        queries = queries[tokens]
        shared = [self._prefix(queries[sharers.tokens], sharers) for sharers in sharing.groups]
        if sharing.num_alone:
            shared.append(in_slot.nothing(sharing.num_alone))
        in_prefix = Partial.joined(shared) if sharing.order is None else Partial.joined(shared)[sharing.order]
        return attention_of_both(in_slot, in_prefix, self.sinks, queries)

    def _parts_in_slots(self, queries: mx.array, keys: mx.array, values: mx.array) -> Iterator[Partial]:
        for window in self.layout.shared_windows:
            own, view = queries[window.rows], window.views[self.sliding]
            pool = self.slots.written
            seen = pool.view(view.cuts[pool.form])
            if window.slab_rows.query_rows is not None:
                own = own[window.slab_rows.query_rows]
            part = attend_in_part(own, *seen, self.scale, view.mask)
            result_rows = window.slab_rows.result_rows
            yield part if result_rows is None else part[result_rows]
        end = self.layout.num_decoding
        for segment in self.layout.joined:
            start, end = end, end + len(segment)
            sides = self._side_by_side(segment, queries[start:end], keys[start:end], values[start:end])
            for part in attend_causally_in_parts(*sides, self.scale, self.sliding):
                yield _kept(segment, part.taken_apart())

    def _prefix(self, queries: mx.array, sharers: Sharers) -> Partial:
        """All tokens of a group at once, as if they were one row with many queries: (n, heads, 1, D)."""
        first = sharers.first_seen(self.sliding)
        keys, values = self.slots.read_prefix(sharers.prefix)
        if first == len(sharers.prefix):
            return Partial.of_nothing(queries.shape[0], queries.shape[1], values.shape[3])
        sides = _side_by_side(queries), keys[:, :, first:], values[:, :, first:]
        return attend_in_part(*sides, self.scale, sharers.mask(self.sliding)).taken_apart()

    def _segment(self, segment: Segment, queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
        """Attention of a segment's tokens, (n, heads, 1, D), to themselves and what is before them."""
        queries, keys, values = self._side_by_side(segment, queries, keys, values)
        if isinstance(segment, Span) and segment.prefix:
            keys, values = joined(self.slots.read_prefix(segment.prefix), (keys, values))
        attended = attend(queries, keys, values, self.scale, "causal", sliding=self.sliding, sinks=self.sinks)
        return _kept(segment, taken_apart(attended))

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


def route_attention(model: Any) -> list[Callable[[], None]]:
    """Make the attention of a model's modules go through a `SlotCache` where it is given one.

    mlx-lm's models call one function of the module that defines them for attention; with any other cache it does what
    it did. Returns what takes back what is new.
    """
    unroute: list[Callable[[], None]] = []
    for name in {kind.__module__ for module in model.modules() for kind in type(module).__mro__}:
        source: Any = sys.modules[name]
        original = getattr(source, "scaled_dot_product_attention", None)
        if original is not None and not hasattr(original, "routes_slots"):
            source.scaled_dot_product_attention = _routed(original)
            unroute.append(partial(setattr, source, "scaled_dot_product_attention", original))
    return unroute


def _routed(original: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def attend(
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        cache: Any,
        scale: float,
        mask: Any = None,
        sinks: mx.array | None = None,
    ) -> mx.array:
        if not isinstance(cache, SlotCache) or cache.written[0] is not keys:
            cache = next((layer for layer in _layers.get() if layer.written[0] is keys), cache)
        if isinstance(cache, SlotCache):
            return cache.attend(queries, keys, values, scale, mask, sinks)
        return original(queries, keys, values, cache, scale, mask, sinks)

    attend.routes_slots = True  # type: ignore[attr-defined]
    return attend
