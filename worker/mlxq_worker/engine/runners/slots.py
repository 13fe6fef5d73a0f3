"""A KV cache of fixed slots: every row's keys and values lie in a slot of their own, from column 0, without padding.

Plugs into mlx-lm's models where their own caches would: a model asks it for `offset` (positions for RoPE), hands it
new keys and values (`update_and_fetch`), and attends through it (`attend`). All tokens of a step, one of each decoding
row and many of each prompt, go through the model side by side as rows of length one, so nothing is padded.
A row that leaves costs nothing, and one that comes takes its slot over in place. Slots of about the same length make
up a slab (`kvcache/slot_allocator` says who lies where). A prefix that rows share is stored once beside the slabs; its
rows attend to it together.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeVar

import mlx.core as mx

from mlxq_worker.engine.kvcache.prefix import Prefix
from mlxq_worker.engine.kvcache.slab import Slab
from mlxq_worker.engine.kvcache.slot_allocator import Changes, SlabSize, Slot
from mlxq_worker.engine.plan import PrefixChunk
from mlxq_worker.engine.runners.attention import Partial, attend, attend_causally_in_parts, attend_in_part, taken_apart
from mlxq_worker.engine.runners.layout import Layout, PackedPrompts, Segment, Sharing, Span, Window


class SlotCache:
    """One layer's keys and values. H heads of keys and values, T columns, D numbers a head."""

    def __init__(self) -> None:
        self._layout: Layout | None = None
        self._sizes: Mapping[int, SlabSize] = {}
        self._slabs: dict[int, Slab] = {}
        self._prefixes: dict[Prefix, tuple[mx.array, mx.array]] = {}  # (1, H, tokens, D) each

    def __repr__(self) -> str:
        slabs = [repr(slab) for _, slab in sorted(self._slabs.items())]
        return f"SlotCache({', '.join(slabs) or 'no slots'}; {len(self._prefixes)} prefixes)"

    @property
    def layout(self) -> Layout:
        assert self._layout is not None, "begin_step comes first"
        return self._layout

    @property
    def offset(self) -> mx.array:
        """(N,) the position of every token of the step in its own sequence: what RoPE rotates by."""
        return self.layout.positions

    def arrange(self, changes: Changes) -> None:
        """Bring the slabs to where the rows of the next steps lie."""
        self._sizes = changes.sizes
        for index, slab in self._slabs.items():
            if index in self._sizes:
                slab.grow(self._sizes[index])
        for (source_slab, target_slab), run in groupby(changes.moves, lambda move: (move[0].slab, move[1].slab)):
            # All at once: within a run no row is copied from where another is copied to.
            self._move(source_slab, target_slab, [(source.index, target.index) for source, target in run])
        for index, slab in self._slabs.items():
            slab.wipe([(wipe.slot.index, wipe.num_columns) for wipe in changes.wiped if wipe.slot.slab == index])
        self._slabs = {index: slab for index, slab in self._slabs.items() if index in self._sizes}
        for index, slab in self._slabs.items():
            slab.shrink(self._sizes[index])

    def begin_step(self, layout: Layout) -> None:
        """Say where the tokens of the next forward pass go."""
        self._layout = layout

    def make_mask(self, *_: Any, **__: Any) -> None:
        """No mask for the model to apply: `attend` knows who sees what."""

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write the step's keys and values, each (N, H, 1, D), where they belong; the model gets them back as is."""
        end = self.layout.num_in_slots
        for write in self.layout.writes:
            if write.slab not in self._slabs:
                self._slabs[write.slab] = Slab.empty(self._sizes[write.slab], keys, values)
            tokens = slice(end) if write.tokens is None else write.tokens
            self._slabs[write.slab].write(write.slots, write.columns, keys[tokens, :, 0], values[tokens, :, 0])
        for chunk in self.layout.prefixes:
            start, end = end, end + len(chunk)
            own = (_side_by_side(keys[start:end]), _side_by_side(values[start:end]))
            self._prefixes[chunk.prefix] = self._behind(self._begun(chunk.prefix), own)
        return keys, values

    def attend(self, queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
        """Attention of every token to its own sequence up to itself: (N, heads, 1, D) to (N, heads, 1, D).

        `keys` and `values` are those of the step's tokens, (N, H, 1, D), which have been written already.
        """
        layout, end = self.layout, self.layout.num_decoding
        if layout.sharing is not None:
            end = layout.sharing.num_tokens
            parts = [self._attend_sharing(queries[:end], keys[:end], values[:end], layout.sharing, scale)]
        else:
            parts = [self._attend_window(queries, window, scale) for window in layout.windows]
        for segment in layout.segments:
            start, end = end, end + len(segment)
            parts.append(self._attend_segment(segment, queries[start:end], keys[start:end], values[start:end], scale))
        return parts[0] if len(parts) == 1 else mx.concatenate(parts)

    def copy(self, pairs: Sequence[tuple[Slot, Slot]]) -> None:
        """Copy rows to other slots of their slabs, over what is there; no row is copied from a slot that another is
        copied to."""
        in_slabs: dict[int, list[tuple[int, int]]] = {}
        for source, target in pairs:
            in_slabs.setdefault(source.slab, []).append((source.index, target.index))
        for index, slots in in_slabs.items():
            self._move(index, index, slots)

    def evict(self, prefix: Prefix) -> None:
        """Free a prefix."""
        self._prefixes.pop(prefix, None)

    def _move(self, source_slab: int, target_slab: int, slots: Sequence[tuple[int, int]]) -> None:
        """Copy rows from slots to slots, over what is there. There is nothing to copy before the first step."""
        if source_slab not in self._slabs:
            return
        sources, targets = zip(*slots, strict=True)
        rows = self._slabs[source_slab].rows(sources)
        if target_slab not in self._slabs:
            self._slabs[target_slab] = Slab.empty(self._sizes[target_slab], *rows)
        self._slabs[target_slab].put(targets, *rows)

    def _attend_window(self, queries: mx.array, window: Window, scale: float) -> mx.array:
        own, keys, values, mask = self._seen_in(window, queries)
        result = attend(own, keys, values, scale, mask)
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
        for window in self.layout.windows:
            own, seen_keys, seen_values, mask = self._seen_in(window, queries)
            part = attend_in_part(own, seen_keys, seen_values, scale, mask)
            yield part if window.result_rows is None else part[window.result_rows]
        end = self.layout.num_decoding
        for segment in self.layout.joined:
            start, end = end, end + len(segment)
            sides = self._side_by_side(segment, queries[start:end], keys[start:end], values[start:end])
            for part in attend_causally_in_parts(*sides, scale):
                yield _kept(segment, part.taken_apart())

    def _seen_in(self, window: Window, queries: mx.array) -> tuple[mx.array, mx.array, mx.array, mx.array | None]:
        """The window's queries out of those of all decoding rows, the keys and values that they see, and a mask."""
        own = queries[window.rows]
        own = own if window.query_rows is None else own[window.query_rows]  # (S, heads, 1, D)
        return own, *self._slabs[window.slab].part(0, window.num_slots, window.width), window.mask

    def _attend_prefix(self, queries: mx.array, prefix: Prefix, scale: float) -> Partial:
        """All tokens of a group at once, as if they were one row with many queries: (n, heads, 1, D)."""
        keys, values = self._prefixes[prefix]
        return attend_in_part(_side_by_side(queries), keys, values, scale).taken_apart()

    def _attend_segment(
        self, segment: Segment, queries: mx.array, keys: mx.array, values: mx.array, scale: float
    ) -> mx.array:
        """Attention of a segment's tokens, (n, heads, 1, D), to themselves and what is before them."""
        queries, keys, values = self._side_by_side(segment, queries, keys, values)
        if isinstance(segment, Span) and segment.prefix:
            keys, values = self._behind(self._prefixes[segment.prefix], (keys, values))
        return _kept(segment, taken_apart(attend(queries, keys, values, scale, "causal")))

    def _side_by_side(
        self, segment: Segment, queries: mx.array, keys: mx.array, values: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        """A segment's queries and what they see in its slot, as rows of several tokens: (B, heads, Q, D) and, twice,
        (B, H, T, D)."""
        if isinstance(segment, PackedPrompts):
            return segment.side_by_side(queries), segment.side_by_side(keys), segment.side_by_side(values)
        if isinstance(segment, PrefixChunk):
            return _side_by_side(queries), *self._prefixes[segment.prefix]
        return _side_by_side(queries), *self._slot_of(segment)

    def _slot_of(self, span: Span) -> tuple[mx.array, mx.array]:
        """A row's keys and values behind its prefix up to the end of a span, (1, H, columns, D) each."""
        slot = span.slot.index
        return self._slabs[span.slot.slab].part(slot, slot + 1, span.stop)

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
