"""One layer's slabs, one after another in one long array of keys and one of values.

Everything is written by scatter, not by slice assignment: mlx does it in place while the step before is still being
computed, where a slice assignment copies all that is there. Only where a slab gets another size all is copied, once.
Knows nothing of rows; `slot_allocator` says who lies where.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Self

import mlx.core as mx
import numpy as np

from mlxq_worker.engine.kvcache import device
from mlxq_worker.engine.kvcache.places import Cut, Form, Places, PoolShape, cuts, sources
from mlxq_worker.engine.kvcache.slot_allocator import SlabSize, Slot

_MANY = 1 << 13
"""From so many numbers on it pays to have numpy write float32 on a CPU."""


class Pool:
    """H heads of keys and values, T columns in a slab's slots, D numbers a head (which may differ between keys and
    values), R rows in all.

    Args:
        shape: how the slabs lie in it.
        keys: (R, D).
        values: (R, D).
    """

    def __init__(self, shape: PoolShape, keys: mx.array, values: mx.array) -> None:
        self._keys = keys
        self._values = values
        self._many = math.inf if device.is_gpu() or keys.dtype != mx.float32 else _MANY
        self._set_shape(shape)

    def __repr__(self) -> str:
        return ", ".join(f"{size.num_slots} slots of {size.num_columns} columns" for size in self.sizes.values())

    @classmethod
    def empty(cls, sizes: Mapping[int, SlabSize], keys: mx.array, values: mx.array) -> Self:
        """A pool for keys and values like these, (m, H, 1, D)."""
        shape = PoolShape.of(keys.shape[1], sizes)
        return cls(
            shape,
            mx.zeros((shape.num_rows, keys.shape[3]), keys.dtype),
            mx.zeros((shape.num_rows, values.shape[3]), values.dtype),
        )

    @property
    def arrays(self) -> tuple[mx.array, mx.array]:
        """Keys and values, (R, D) each."""
        return self._keys, self._values

    @property
    def sizes(self) -> Mapping[int, SlabSize]:
        return self._shape.sizes

    def write(self, places: Places, keys: mx.array, values: mx.array) -> None:
        """Write m tokens' keys and values, each (m, H, 1, D), to their places."""
        rows = places.rows[self._shape]
        if keys.size < self._many:  # on a GPU, always
            self._keys[rows] = keys
            self._values[rows] = values
        else:
            _put(rows, (self._keys, keys), (self._values, values))

    def read(
        self, slab: int, first: int, last: int, num_columns: int, first_column: int = 0
    ) -> tuple[mx.array, mx.array]:
        """Keys and values of slots `first` to `last` of a slab, each (last - first, H, columns, D): of so many columns
        without those before the first one."""
        return self.view(cuts(slab, first, last, num_columns, first_column, self.form))

    def view(self, places: tuple[Cut, Cut]) -> tuple[mx.array, mx.array]:
        """One view of a part of the keys and one of the values; slices of slabs, slots and columns would be six."""
        of_keys, of_values = places
        return mx.as_strided(self._keys, *of_keys), mx.as_strided(self._values, *of_values)

    def copy(self, pairs: Sequence[tuple[Slot, Slot]]) -> None:
        """Copy all columns of slots to other slots, over all of theirs; none is copied from a slot that another is
        copied to, and all sources lie in one slab, as all targets do."""
        sources, targets = [source for source, _ in pairs], [target for _, target in pairs]
        num_columns = min(self.sizes[slot.slab].num_columns for slot in (sources[0], targets[0]))
        from_rows = Places.of((slot, range(num_columns)) for slot in sources).rows[self._shape]
        to_rows = Places.of((slot, range(num_columns)) for slot in targets).rows[self._shape]
        self._keys[to_rows] = self._keys[from_rows]
        self._values[to_rows] = self._values[from_rows]
        self.wipe((target, range(num_columns, self.sizes[target.slab].num_columns)) for target in targets)

    def wipe(self, runs: Iterable[tuple[Slot, range]]) -> None:
        """Forget what rows that have left wrote in these columns, as far as a slab still has them: a masked key counts
        for nothing, but a masked value is multiplied by zero, and that would pass on a NaN."""
        there = [
            (slot, range(columns.start, min(columns.stop, size.num_columns)))
            for slot, columns in runs
            if slot.index < (size := self.sizes[slot.slab]).num_slots
        ]
        if len(places := Places.of(there)):
            self._wipe(places.rows[self._shape])

    def rearrange(self, sizes: Mapping[int, SlabSize], moves: Sequence[tuple[Slot, Slot]]) -> None:
        """Have slabs of these sizes and no others, with what was there of them once rows have been copied from slot to
        slot, one after another. All at once, so that nothing is there more than twice."""
        if self.sizes == dict(sizes):
            for _, run in groupby(moves, lambda move: (move[0].slab, move[1].slab)):
                # Within a run no row is copied from where another is copied to.
                self.copy(list(run))
            return
        shape = PoolShape.of(self._shape.num_heads, sizes)
        rows, empty = sources(self._shape, shape, tuple(moves))
        self._keys, self._values = self._keys[rows], self._values[rows]
        if empty.size:
            self._wipe(empty)
        self._set_shape(shape)

    def _wipe(self, rows: mx.array) -> None:
        zero = mx.zeros((1,), self._values.dtype)
        if rows.size * self._values.shape[1] < self._many:
            self._values[rows] = zero
        else:
            _put(rows, (self._values, zero))

    def _set_shape(self, shape: PoolShape) -> None:
        self._shape = shape
        self.form: Form = shape, self._keys.shape[1], self._values.shape[1]


def _put(rows: mx.array, *pairs: tuple[mx.array, mx.array]) -> None:
    """Have numpy write, for each pair, the second one's numbers, which broadcast to (*rows.shape, D), to rows of the
    first, (R, D): mlx scatters one number at a time on a CPU and takes ten times as long.

    All there is has to be computed for that. Who was to read what is written over doesn't need it any longer, or has
    read it: one stream computes everything in order.
    """
    mx.eval(rows, pairs)
    places = np.array(rows, copy=False)
    for array, numbers in pairs:
        np.array(array, copy=False)[places] = np.array(numbers, copy=False)
