"""Caches of layers whose modules need a row's tokens side by side in time, and how those modules are called: once for
each group of tokens (`step/groups`), each time with a view of the cache that shows just that group's rows.

`OwnAttentionCache` is for modules that attend by themselves: with a latent in place of keys and values, with scores
that are capped, with positions in their scores; `state_cache` for layers that keep a state a row. A view behaves as
mlx-lm's own caches do, so a module computes on it what it computes there. What is stored is `kvcache/slots`' business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial, wraps
from typing import Any, get_args

import mlx.core as mx
import mlx.nn as nn

from mlxq_worker.engine.kvcache.prefix import Prefix
from mlxq_worker.engine.kvcache.slot_allocator import Changes, Slot
from mlxq_worker.engine.plan import PrefixChunk
from mlxq_worker.engine.runners.slot_cache import InSlots, SlotMask, one_window
from mlxq_worker.engine.runners.state_cache import StateCache
from mlxq_worker.engine.runners.step.groups import Group, Grouping, by_slab, by_state
from mlxq_worker.engine.runners.step.layout import Layout


class OwnAttentionCache(InSlots):
    """One layer whose module attends by itself, over slots from column 0, a prefix's tokens included.

    Args:
        grouped: how its module's calls are grouped.
        sliding: how many tokens a token sees, itself the last of them; `None` for all up to itself.
    """

    def __init__(self, grouped: Callable[[Layout], Grouping] = by_slab, sliding: int | None = None) -> None:
        super().__init__()
        self.grouped = grouped
        self.sliding = sliding
        self.layout = Layout([])
        self._written: set[int] = set()

    def __repr__(self) -> str:
        return f"OwnAttentionCache({self.slots!r})"

    @property
    def arrays(self) -> list[mx.array]:
        """Keys that a model only chooses by may be seen by no token."""
        return self.slots.arrays

    @property
    def offset(self) -> mx.array:
        """(N,) the position of every token of the step in its own sequence."""
        return self.layout.positions

    def begin_step(self, layout: Layout) -> None:
        """Say where the tokens of the next forward pass go."""
        self.layout = layout
        self._written.clear()

    def may_write(self, group: Group) -> bool:
        """Whether a group's tokens are still to be written: true once."""
        is_new = id(group) not in self._written
        self._written.add(id(group))
        return is_new

    def make_mask(self, *_: Any, window_size: int | None = None, **__: Any) -> SlotMask:
        """Stands for each group's mask."""
        return SlotMask(window_size)

    def view(self, group: Group) -> SlotView:
        """A group's rows."""
        return SlotView(self, group)

    def keep(self, group: Group, view: SlotView) -> None:
        """Everything was written when it was handed over."""


class OthersWriteFirst(Exception):
    """A group may not read its slots yet."""


class SlotView:
    """A group's rows in their slots, as mlx-lm's `BatchKVCache` shows its rows, but padded at their ends. B rows of T
    tokens, K columns. `keys` and `values` are what was fetched last."""

    def __init__(self, cache: OwnAttentionCache, group: Group) -> None:
        self._cache = cache
        self._slots = cache.slots
        self._sliding = cache.sliding
        self._group = group
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    @property
    def offset(self) -> mx.array:
        """(B,) the position of each row's first token."""
        return self._group.positions

    def make_mask(
        self, num_tokens: int, *, window_size: int | None = None, return_array: bool = False, **_: Any
    ) -> mx.array:
        """(B, 1, T, K), true where a token sees a column."""
        sliding = one_window(self._sliding, window_size)
        stops = mx.array([self._stop(index) for index in range(len(self._group.parts))])[:, None, None, None]
        tokens = stops - self._group.length + mx.arange(self._group.length)[None, None, :, None]
        columns = mx.arange(self._num_columns)[None, None, None]
        seen = columns <= tokens
        return seen if sliding is None else seen & (columns > tokens - sliding)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write the keys and values of the rows' tokens, (B, H, T, D) each; returns those of their slots, (B, H, K, D)
        each.

        Raises:
            OthersWriteFirst: they are written, and others' may not be yet.
        """
        self.keys, self.values = self._update(keys, values)
        return self.keys, self.values

    def _update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        source = self._group.parts[0].source
        if isinstance(source, PrefixChunk):
            self._slots.extend_prefix(source.prefix, keys, values)
            return self._slots.read_prefix(source.prefix)
        if self._cache.may_write(self._group):
            if source.source and self._group.parts[0].start == 0:
                self._slots.copy_prefix(source.source, [source.slot])
            kept = self._group.results
            own = (keys, values) if kept is None else (keys[kept], values[kept])
            self._slots.write(self._group.places, *map(_token_by_token, own))
            if self._group.reads_slots and self._cache.layout.derived(self._cache.grouped).num_reading > 1:
                raise OthersWriteFirst
        if self._group.is_fresh:
            return keys, values
        first = 0 if self._group.window else source.slot.index
        return self._slots.read(source.slot.slab, first, first + len(self._group.parts), self._num_columns)

    @property
    def _num_columns(self) -> int:
        return max(map(self._stop, range(len(self._group.parts))))

    def _stop(self, index: int) -> int:
        """The column behind a row's last token."""
        part = self._group.parts[index]
        return part.source.start + part.start + self._group.length


class GroupedList:
    """One layer with several caches, which its modules take apart themselves."""

    def __init__(self, members: Sequence[Any]) -> None:
        self._members = tuple(members)
        # Where another member is seen group by group its module may be handed states, too.
        self._hands_states = not any(isinstance(member, OwnAttentionCache | GroupedList) for member in members)

    def __repr__(self) -> str:
        return f"GroupedList({', '.join(map(repr, self._members))})"

    @property
    def arrays(self) -> list[mx.array]:
        """What is computed of its members or will be."""
        return [array for member in self._members for array in member.arrays]

    @property
    def grouped(self) -> Callable[[Layout], Grouping]:
        """How the calls of a module with all of its members are grouped: states can be taken in any way."""
        return _narrowest(self._members)

    @property
    def layout(self) -> Layout:
        """The step's."""
        layout: Layout = self._members[0].layout
        return layout

    def __getitem__(self, index: int) -> Any:
        member = self._members[index]
        return member.handed() if self._hands_states and isinstance(member, StateCache) else member

    @property
    def states(self) -> Sequence[StateCache]:
        """Those of its members that are states."""
        return [member for member in self._members if isinstance(member, StateCache)]

    def __len__(self) -> int:
        return len(self._members)

    def begin_step(self, layout: Layout) -> None:
        """Say which tokens the next forward pass has."""
        for member in self._members:
            member.begin_step(layout)

    def arrange(self, changes: Changes) -> None:
        """Bring the slabs to where the rows of the next steps lie."""
        for member in self._members:
            member.arrange(changes)

    def copy(self, slots: Sequence[tuple[Slot, Slot]], rows: Sequence[tuple[int, int]]) -> None:
        """Copy rows to other places."""
        for member in self._members:
            member.copy(slots, rows)

    def evict(self, prefix: Prefix) -> None:
        """Free a prefix."""
        for member in self._members:
            member.evict(prefix)

    def view(self, group: Group) -> list[Any]:
        """A view of each member."""
        return [member.view(group) for member in self._members]

    def keep(self, group: Group, view: Sequence[Any]) -> None:
        """Take over what was left in the views."""
        for member, each in zip(self._members, view, strict=True):
            member.keep(group, each)


def route_calls(kind: type[nn.Module]) -> bool:
    """Have modules of this class called once for each group of tokens where they are handed a grouped cache; with any
    other cache they do what they did. Returns whether that is new to the class."""
    original = kind.__call__
    if hasattr(original, "routes_groups"):
        return False

    @wraps(original)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        kinds = {*map(type, args), *map(type, kwargs.values())}
        if _GROUPED.isdisjoint(kinds):
            return original(self, *args, **kwargs)
        caches = [each for each in (*args, *kwargs.values()) if type(each) in _GROUPED]
        return _in_groups(partial(original, self), caches, args, kwargs)

    call.routes_groups = True  # type: ignore[attr-defined]
    kind.__call__ = call
    return True


def unroute_calls(kind: type[nn.Module]) -> None:
    """Have modules of a class called again as before `route_calls`."""
    kind.__call__ = kind.__call__.__wrapped__  # type: ignore[attr-defined]


Grouped = StateCache | OwnAttentionCache | GroupedList
"""A layer's cache that its module sees group by group."""
_GROUPED = frozenset(get_args(Grouped))


def _in_groups(
    compute: Callable[..., Any], caches: Sequence[Grouped], args: Sequence[Any], kwargs: dict[str, Any]
) -> Any:
    """The module's results, group by group.

    MLX writes in place only what nobody holds, and a group holds the slabs that it reads until it is computed, on Metal
    a while longer: a group that wrote after another has read would have them copied. So groups that read nothing come
    first, and the others twice, as often as there are caches in slots: up to where they have written, then from there
    on. What was begun in vain is never computed.
    """
    first = caches[0]
    grouped = first.grouped if len(caches) == 1 else _narrowest(caches)
    grouping: Grouping = first.layout.derived(grouped)

    def computed(group: Group) -> Any:
        views: dict[int, Any] = {id(cache): cache.view(group) for cache in caches}
        masks = [view for view in _flat(views.values()) if isinstance(view, SlotView)]

        def seen(argument: Any) -> Any:
            if id(argument) in views:
                return views[id(argument)]
            if isinstance(argument, SlotMask):
                return masks[0].make_mask(group.length, window_size=argument.sliding) if masks else None
            return grouping.split(group, argument)

        result = compute(*map(seen, args), **{name: seen(each) for name, each in kwargs.items()})
        for cache in caches:
            cache.keep(group, views[id(cache)])
        return result

    results: dict[int, Any] = {}
    waiting = list(range(len(grouping.groups)))
    if grouped is not by_state:
        waiting.sort(key=lambda index: grouping.groups[index].reads_slots)
    while waiting:
        held_up = []
        for index in waiting:
            try:
                results[index] = computed(grouping.groups[index])
            except OthersWriteFirst:
                held_up.append(index)
        waiting = held_up
    return grouping.joined([results[index] for index in range(len(results))])


def _narrowest(caches: Sequence[Any]) -> Callable[[Layout], Grouping]:
    return next((cache.grouped for cache in caches if cache.grouped is not by_state), by_state)


def _flat(views: Any) -> Iterator[Any]:
    for view in views:
        yield from _flat(view) if isinstance(view, list) else (view,)


def _token_by_token(rows: mx.array) -> mx.array:
    """(B, H, T, D) to (B * T, H, 1, D)."""
    return rows.swapaxes(1, 2).flatten(0, 1)[:, :, None]
