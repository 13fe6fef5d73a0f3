"""The cache of a layer that keeps a state a row, whose modules need a row's tokens side by side in time.

As a rule a step has one token of each row, and modules are handed all rows' states at once; else they are called group
by group (`grouped_cache`). What is stored is `kvcache/states`' business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache

from mlxq_worker.engine.kvcache.prefix import Prefix
from mlxq_worker.engine.kvcache.slot_allocator import Changes, Slot
from mlxq_worker.engine.kvcache.states import State, States
from mlxq_worker.engine.plan import PrefixChunk
from mlxq_worker.engine.runners.step.groups import Group, by_state
from mlxq_worker.engine.runners.step.layout import Layout


class StateCache:
    """One layer that keeps a state a row, as `size` arrays."""

    grouped = staticmethod(by_state)

    def __init__(self, size: int) -> None:
        self.states = States()
        self.layout = Layout([])
        self._size = size
        self._view = ArraysCache(0)
        self._is_handed = False

    def __repr__(self) -> str:
        return f"StateCache({self.states!r})"

    @property
    def arrays(self) -> list[mx.array]:
        """What is computed of it or will be."""
        return self.states.arrays

    def begin_step(self, layout: Layout) -> None:
        """Say which tokens the next forward pass has."""
        self.layout, self._is_handed = layout, False

    def handed(self) -> StateCache | ArraysCache:
        """What the step's modules are to be handed: where one group has all tokens as they stand, as in nearly all
        steps, all rows' states at once, so that they needn't be called group by group."""
        grouping = self.layout.derived(by_state)
        if not (grouping.is_whole and grouping.groups[0].num_rows == self.layout.num_rows > 0):
            return self
        state = self.states.first(self.layout.num_rows)
        if state is not self.states.current:
            return self
        self._view.cache = state
        self._is_handed = True
        return self._view

    def end_step(self) -> None:
        """Keep what modules have put in the place of what they were handed."""
        if self._is_handed:
            self.states.replace(self._view.cache)
            self._is_handed = False

    def arrange(self, changes: Changes) -> None:
        """States lie by their rows' numbers: nothing moves."""

    def copy(self, slots: Sequence[tuple[Slot, Slot]], rows: Sequence[tuple[int, int]]) -> None:
        """Copy rows' states to other rows."""
        self.states.copy(rows)

    def evict(self, prefix: Prefix) -> None:
        """Free a prefix."""
        self.states.evict(prefix)

    def make_mask(self, *_: Any, **__: Any) -> None:
        """Every token of every group counts."""

    def view(self, group: Group) -> ArraysCache:
        """The states before a group's first tokens."""
        if group.num_rows:
            return _state_view(self.states.first(group.num_rows))
        empty: State = (None,) * self._size
        if group.is_fresh:
            return _state_view(empty)
        source = group.parts[0].source
        if isinstance(source, PrefixChunk):
            return _state_view(self.states.read_prefix(source.prefix) or empty)
        self._begin_behind_prefixes(group)
        return _state_view(self.states.read(group.rows))

    def keep(self, group: Group, view: ArraysCache) -> None:
        """Take over the states after a group's last tokens."""
        source, state = group.parts[0].source, tuple(view.cache)
        if group.num_rows:
            self.states.replace_first(state, self.layout.num_rows)
        elif isinstance(source, PrefixChunk):
            self.states.write_prefix(source.prefix, state)
        elif group.results is None:
            self.states.write(group.rows, self.layout.num_rows, state)
        else:
            real = tuple(None if array is None else array[group.results] for array in state)
            self.states.write(group.rows[group.results], self.layout.num_rows, real)

    def _begin_behind_prefixes(self, group: Group) -> None:
        """Copy the state where a prefix ends to each row that goes on from there."""
        if group.parts[0].start > 0:
            return
        begun = [span for span in group.spans if span.source]
        for prefix in dict.fromkeys(span.source for span in begun if span.source):
            rows = mx.array([span.row for span in begun if span.source is prefix], dtype=mx.uint32)
            state = self.states.read_prefix(prefix)
            assert state is not None, "a prefix comes before what is behind it"
            self.states.write(rows, self.layout.num_rows, state)


def _state_view(state: Sequence[mx.array | None]) -> ArraysCache:
    """A group's states as mlx-lm's models see them. Nothing is padded: all rows have the same number of tokens."""
    view = ArraysCache(0)
    view.cache = [*state]
    return view
