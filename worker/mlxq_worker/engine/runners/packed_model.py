"""An mlx-lm model over slots and states of ours, instead of its own caches.

Each layer gets the cache of its kind (`LayerCache`), as its model's own caches say; how attention is done is one of two
`Way`s. Refuses to know rows: `packed` brings a plan's rows here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from itertools import chain
from typing import Any, Protocol

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, RotatingKVCache, make_prompt_cache

from mlxq_worker.engine.kvcache.prefix import Prefix
from mlxq_worker.engine.kvcache.slot_allocator import Changes, Slot
from mlxq_worker.engine.runners.body import look_into, split
from mlxq_worker.engine.runners.grouped_cache import GroupedList, OwnAttentionCache, route_calls, unroute_calls
from mlxq_worker.engine.runners.on_cpu.quick import quick
from mlxq_worker.engine.runners.on_cpu.routes import route_quick
from mlxq_worker.engine.runners.slot_cache import SlotCache, route_attention, step_of_layers
from mlxq_worker.engine.runners.state_cache import StateCache
from mlxq_worker.engine.runners.step.groups import by_row, by_slab
from mlxq_worker.engine.runners.step.layout import Layout


class Way(StrEnum):
    """How the layers that have keys and values attend to slots."""

    SHARED = "shared"
    """Through `SlotCache`: all tokens at once, and to each shared prefix together."""
    OWN = "own"
    """By the model's own code, a group of rows after another, each with its prefix in its slot."""
    ALONE = "alone"
    """So, too, but each row by itself."""

    @property
    def copies_prefixes(self) -> bool:
        """Whether a row has the prefix that it begins with in its own slot."""
        return self is not Way.SHARED


class LayerCache(Protocol):
    """What one layer keeps of every row, of whatever kind, and what its model sees in place of its own cache."""

    @property
    def arrays(self) -> list[mx.array]:
        """What it keeps that no token of the step may depend on."""

    def begin_step(self, layout: Layout) -> None:
        """Say which tokens the next forward pass has and where they go."""

    def arrange(self, changes: Changes) -> None:
        """Bring what lies in slots to where the rows of the next steps lie."""

    def copy(self, slots: Sequence[tuple[Slot, Slot]], rows: Sequence[tuple[int, int]]) -> None:
        """Copy rows, given by their slots and by their numbers, over others; none is copied from where another is
        copied to."""

    def evict(self, prefix: Prefix) -> None:
        """Free what is kept of a prefix."""


class PackedModel:
    """An mlx-lm model over slots: `hidden` runs its layers, `logits` its head, apart, since most of a prompt's tokens
    need no logits. N tokens in a step, E numbers in a hidden state, V ids in the vocabulary.

    Args:
        model: an mlx-lm model.
        way: how it attends.

    Raises:
        ValueError: some layer's cache is of no kind that is known here, or is used in no way that is.
    """

    def __init__(self, model: Any, way: Way = Way.SHARED) -> None:
        self.caches: list[LayerCache] = [_cache_for(cache, way) for cache in make_prompt_cache(model)]
        self._attending = [cache for cache in self.caches if isinstance(cache, SlotCache)]
        self._layers_of_states = {i: cache for i, cache in enumerate(self.caches) if isinstance(cache, StateCache)}
        members = (cache.states for cache in self.caches if isinstance(cache, GroupedList))
        self._states = [*self._layers_of_states.values(), *chain.from_iterable(members)]
        anatomy = look_into(model)
        grouped = [u for cache, u in zip(self.caches, anatomy.users, strict=True) if not isinstance(cache, SlotCache)]
        if not all(grouped):
            raise ValueError("a layer's cache is handed to no module of it")
        self._body, self._head = split(model, anatomy)
        self.copies_prefixes = way.copies_prefixes
        # From here on nothing fails: what is routed now `let_go` takes back.
        self._unroute = route_quick(model)
        if way is Way.SHARED:
            self._unroute += route_attention(model)
        self._unroute += [partial(unroute_calls, kind) for kind in chain(*grouped) if route_calls(kind)]

    def let_go(self) -> None:
        """Have the model's modules and their functions do again what they did. It can't be run from here on."""
        for unroute in self._unroute:
            unroute()
        self._unroute.clear()

    def arrange(self, changes: Changes) -> None:
        """Bring every layer's slabs to where the rows of the next steps lie."""
        for cache in self.caches:
            cache.arrange(changes)

    def evict(self, prefix: Prefix) -> None:
        """Free a prefix."""
        for cache in self.caches:
            cache.evict(prefix)

    def copy(self, slots: Sequence[tuple[Slot, Slot]], rows: Sequence[tuple[int, int]]) -> None:
        """Copy rows, given by their slots and by their numbers, over others."""
        for cache in self.caches:
            cache.copy(slots, rows)

    def hidden(self, tokens: mx.array, layout: Layout) -> mx.array:
        """Run tokens (N,) through the layers, writing what they leave where `layout` says: (N, 1, E)."""
        for cache in self.caches:
            cache.begin_step(layout)
        handed: list[Any] = [*self.caches]
        for index, states in self._layers_of_states.items():
            handed[index] = states.handed()
        with quick(), step_of_layers(self._attending):
            hidden: mx.array = self._body(tokens[:, None], handed)
        for states in self._states:
            states.end_step()
        return hidden

    def logits(self, hidden: mx.array) -> mx.array:
        """(N, 1, E) to (N, V)."""
        logits: mx.array = self._head(hidden)
        return logits[:, -1]

    @property
    def arrays(self) -> list[mx.array]:
        """What the layers keep that no token of the last step may depend on."""
        return [array for cache in self.caches for array in cache.arrays]


_KINDS: dict[type, Callable[[Any, Way], Any]] = {
    KVCache: lambda cache, way: _attended(way, None),
    RotatingKVCache: lambda cache, way: _sliding(cache, way),
    ArraysCache: lambda cache, way: StateCache(len(cache.cache)),
    CacheList: lambda cache, way: GroupedList([_cache_for(member, way) for member in cache.caches]),
}


def _cache_for(cache: Any, way: Way) -> Any:
    kind = _KINDS.get(type(cache))
    if kind is None:
        raise ValueError(f"a layer keeps a {type(cache).__name__}")
    return kind(cache, way)


def _sliding(cache: RotatingKVCache, way: Way) -> SlotCache | OwnAttentionCache:
    if cache.keep:
        raise ValueError(f"a layer's window keeps its first {cache.keep} tokens")
    return _attended(way, cache.max_size)


def _attended(way: Way, sliding: int | None) -> SlotCache | OwnAttentionCache:
    if way is Way.SHARED:
        return SlotCache(sliding)
    return OwnAttentionCache(by_slab if way is Way.OWN else by_row, sliding)
