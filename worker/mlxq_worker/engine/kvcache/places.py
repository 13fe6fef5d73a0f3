"""Where in a layer's pool the numbers of a token lie: slabs one after another, in each of them slots, heads, columns.

A pool is one long array, so that the tokens of a step are written at once, whatever slabs their slots are in: what it
takes is one index for each token and head. Those are made once a step and pool shape, for all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from itertools import accumulate
from typing import Generic, Self, TypeVar

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxq_worker.engine.kvcache.slot_allocator import SlabSize, Slot

Numbers = NDArray[np.int64]

Cut = tuple[tuple[int, ...], tuple[int, ...], int]
"""Where a part of an array lies: the lengths of its axes, their steps, and where its first number is."""

C = TypeVar("C")
K = TypeVar("K")
V = TypeVar("V")

_STEPS_AHEAD = 16
"""At most. Rows of a batch seldom go on together for longer."""


class Made(dict[K, V], Generic[K, V]):
    """What `make` makes of each key, made when it is first asked for. To ask again calls nothing: that is for what
    every layer asks for in every step."""

    def __init__(self, make: Callable[[K], V]) -> None:
        self._make = make

    def __missing__(self, key: K) -> V:
        value = self[key] = self._make(key)
        return value


class Ahead(Generic[V]):
    """What each of the next steps needs, made for several of them at once: in between two steps so much else is done
    that to begin to make it takes a processor far longer than to make more of it.

    Args:
        make: of one step, by how many it is behind the first one.
        most: how many steps at a time at most.
    """

    def __init__(self, make: Callable[[int], V], most: int = _STEPS_AHEAD) -> None:
        self._make, self._most = make, min(max(1, most), _STEPS_AHEAD)
        self._steps, self._made = range(0), list[V]()

    def at(self, step: int) -> V:
        """That of one step. The first is made alone, then 4, then more: rows that have gone on go on."""
        if step not in self._steps:
            self._steps = range(step, step + min(self._most, max(1, 4 * step)))
            self._made = list(map(self._make, self._steps))
        return self._made[step - self._steps.start]


def copied(what: C) -> C:
    """A copy with the same attributes, made faster than `copy.copy` makes one: there are several in every step."""
    copy = object.__new__(type(what))
    copy.__dict__.update(what.__dict__)
    return copy


class PoolShape:
    """How H heads of slabs of these sizes lie in one array of R rows.

    All pools of one shape have one object of it (`of`), as a key that takes no time to compare.

    Attributes:
        num_rows: R.
    """

    def __init__(self, num_heads: int, sizes: Mapping[int, SlabSize]) -> None:
        self.num_heads = num_heads
        self.sizes: Mapping[int, SlabSize] = dict(sorted(sizes.items()))
        ends = list(accumulate((num_heads * size.area for size in self.sizes.values()), initial=0))
        self.num_rows = ends[-1]
        self._starts = dict(zip(self.sizes, ends, strict=False))

    @staticmethod
    def of(num_heads: int, sizes: Mapping[int, SlabSize]) -> PoolShape:
        """That of a pool for so many heads."""
        return _shape(num_heads, tuple(sorted(sizes.items())))

    def slab_row(self, slab: int) -> int:
        """The first row of a slab."""
        return self._starts[slab]

    def slot_rows(self, slot: Slot) -> slice:
        """All rows of a slot, head after head."""
        num_rows = self.num_heads * self.sizes[slot.slab].num_columns
        first = self._starts[slot.slab] + slot.index * num_rows
        return slice(first, first + num_rows)

    def rows_of(self, slabs: Numbers, slots: Numbers, columns: Numbers) -> NDArray[np.uint32]:
        """Rows of places (m,): those of all heads (m, H)."""
        starts, widths = np.zeros((2, max(self.sizes) + 1), dtype=np.int64)
        for slab, size in self.sizes.items():
            starts[slab], widths[slab] = self._starts[slab], size.num_columns
        width = widths[slabs]
        first = starts[slabs] + slots * (self.num_heads * width) + columns  # (m,) of the first head
        return (first[:, None] + np.arange(self.num_heads) * width[:, None]).astype(np.uint32)


@lru_cache(maxsize=64)
def _shape(num_heads: int, sizes: tuple[tuple[int, SlabSize], ...]) -> PoolShape:
    return PoolShape(num_heads, dict(sizes))


Form = tuple[PoolShape, int, int]
"""The shape of a pool, and how many numbers a row of its keys and one of its values have."""


@lru_cache(maxsize=64)
def cuts(slab: int, first: int, last: int, num_columns: int, first_column: int, form: Form) -> tuple[Cut, Cut]:
    """Where in the keys and in the values of pools of a form slots `first` to `last` of a slab lie, of so many columns
    without those before the first one: the axes are slots, heads, columns and numbers."""
    shape, *sizes = form
    width = shape.sizes[slab].num_columns
    slot_rows = shape.num_heads * width
    start = shape.slab_row(slab) + first * slot_rows + first_column
    lengths = (last - first, shape.num_heads, num_columns - first_column)
    of_keys, of_values = [((*lengths, size), (slot_rows * size, width * size, size, 1), start * size) for size in sizes]
    return of_keys, of_values


@lru_cache(maxsize=2)
def sources(old: PoolShape, new: PoolShape, moves: tuple[tuple[Slot, Slot], ...]) -> tuple[mx.array, mx.array]:
    """Where in a pool what a pool of another shape holds comes from, once rows have moved from slot to slot one after
    another: (R,) rows of the old pool for those of the new one, and (n,) those of the new one that come from nowhere.
    """
    content: dict[Slot, Slot] = {}
    for source, target in moves:
        content[target] = content.get(source, source)
    rows = np.full(new.num_rows, -1, dtype=np.int64)
    for slab, size in new.sizes.items():
        for index in range(size.num_slots):
            slot = content.get(Slot(slab, index), Slot(slab, index))
            there = old.sizes.get(slot.slab)
            if there is None or slot.index >= there.num_slots:
                continue
            num_columns = min(size.num_columns, there.num_columns)
            to, place = new.slot_rows(Slot(slab, index)), old.slot_rows(slot)
            rows[to].reshape(new.num_heads, -1)[:, :num_columns] = np.arange(place.start, place.stop).reshape(
                new.num_heads, -1
            )[:, :num_columns]
    empty = np.flatnonzero(rows < 0)
    return mx.array(np.maximum(rows, 0).astype(np.uint32)), mx.array(empty.astype(np.uint32))


class Places:
    """Columns of slots, m of them: where a step's tokens are written, in their order.

    Attributes:
        rows: by the shape of a pool, where the tokens' heads go in it: (m, H, 1). Unsigned, since mlx takes a quarter
            longer to scatter where an index might count from the end.
    """

    def __init__(self, slabs: Numbers, slots: Numbers, columns: Numbers) -> None:
        self._num_places, self._num_later = len(slabs), 0
        self._rows: Made[PoolShape, Ahead[mx.array]] = Made(partial(_rows_ahead, slabs, slots, columns))
        self._set_rows()

    @classmethod
    def of(cls, runs: Iterable[tuple[Slot, range]]) -> Self:
        """Columns of one slot after another."""
        runs = list(runs)
        lengths = np.array([len(columns) for _, columns in runs], dtype=np.int64)
        slabs = np.array([slot.slab for slot, _ in runs], dtype=np.int64)
        slots = np.array([slot.index for slot, _ in runs], dtype=np.int64)
        columns = np.array([column for _, columns in runs for column in columns], dtype=np.int64)
        return cls(np.repeat(slabs, lengths), np.repeat(slots, lengths), columns)

    def __len__(self) -> int:
        return self._num_places

    def next(self) -> Places:
        """One column further, in the same slots."""
        later = copied(self)
        later._num_later += 1
        later._set_rows()
        return later

    def _set_rows(self) -> None:
        self.rows: Made[PoolShape, mx.array] = Made(partial(_rows_at, self._rows, self._num_later))


def _rows_ahead(slabs: Numbers, slots: Numbers, columns: Numbers, shape: PoolShape) -> Ahead[mx.array]:
    at_first = shape.rows_of(slabs, slots, columns)[..., None]
    return Ahead(lambda step: mx.array(at_first + np.uint32(step)))


def _rows_at(rows: Made[PoolShape, Ahead[mx.array]], num_later: int, shape: PoolShape) -> mx.array:
    return rows[shape].at(num_later)
