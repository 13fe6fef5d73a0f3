"""One layer's keys and values of rows of about the same length: slots by columns, all slots equally long.

Everything is written by scatter, not by slice assignment: mlx does it in place while the step before is still being
computed, where a slice assignment copies the whole slab. Knows nothing of rows; `slot_allocator` says who lies where.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

import mlx.core as mx

from mlxq_worker.engine.kvcache.slot_allocator import SlabSize


class Slab:
    """H heads of keys and values, T columns, D numbers a head (which may differ between keys and values).

    Args:
        keys: (slots, H, T, D).
        values: (slots, H, T, D).
    """

    def __init__(self, keys: mx.array, values: mx.array) -> None:
        self._keys = keys
        self._values = values
        # Heads by their indices: where they are left as they are, mlx makes the same array anew at every write.
        self._heads = mx.arange(keys.shape[1], dtype=mx.uint32)[None]  # (1, H)
        mx.eval(self._heads)

    def __repr__(self) -> str:
        return f"{self.size.num_slots} slots of {self.size.num_columns} columns"

    @classmethod
    def empty(cls, size: SlabSize, keys: mx.array, values: mx.array) -> Self:
        """A slab for keys and values like these, (N, H, any, D)."""
        return cls(
            mx.zeros((size.num_slots, keys.shape[1], size.num_columns, keys.shape[3]), keys.dtype),
            mx.zeros((size.num_slots, values.shape[1], size.num_columns, values.shape[3]), values.dtype),
        )

    @property
    def arrays(self) -> tuple[mx.array, mx.array]:
        """Keys and values, (slots, H, T, D) each."""
        return self._keys, self._values

    @property
    def size(self) -> SlabSize:
        return SlabSize(self._keys.shape[0], self._keys.shape[2])

    def write(self, slots: mx.array, columns: mx.array, keys: mx.array, values: mx.array) -> None:
        """Write tokens' keys and values (m, H, D) to slots (m, 1) and columns (m, 1)."""
        self._keys[slots, self._heads, columns] = keys
        self._values[slots, self._heads, columns] = values

    def part(self, first: int, last: int, num_columns: int) -> tuple[mx.array, mx.array]:
        """Keys and values of slots `first` to `last`, each (last - first, H, num_columns, D)."""
        return self._keys[first:last, :, :num_columns], self._values[first:last, :, :num_columns]

    def rows(self, slots: Sequence[int]) -> tuple[mx.array, mx.array]:
        """Keys and values of n slots, each (n, H, T, D)."""
        where = mx.array(list(slots))
        return self._keys[where], self._values[where]

    def put(self, slots: Sequence[int], keys: mx.array, values: mx.array) -> None:
        """Write n rows (n, H, any, D) over what is in these slots."""
        where, num_columns = mx.array(list(slots)), self.size.num_columns
        self._keys[where] = _resized(keys, len(slots), num_columns)
        self._values[where] = _resized(values, len(slots), num_columns)

    def wipe(self, written: Iterable[tuple[int, int]]) -> None:
        """Forget what rows that have left wrote, so many columns in each of these slots: a masked key counts for
        nothing, but a masked value is multiplied by zero, and that would pass on a NaN."""
        within = [(slot, min(num, self.size.num_columns)) for slot, num in written if slot < self.size.num_slots]
        if within:
            slots = mx.array([slot for slot, num in within for _ in range(num)])
            columns = mx.array([column for _, num in within for column in range(num)])
            self._values[slots, :, columns] = mx.zeros((1,), self._values.dtype)

    def grow(self, size: SlabSize) -> None:
        """Make room for this many slots and columns at least."""
        self._resize(SlabSize(max(size.num_slots, self.size.num_slots), max(size.num_columns, self.size.num_columns)))

    def shrink(self, size: SlabSize) -> None:
        """Free what is far more than these many slots and columns."""
        if 2 * size.area <= self.size.area:
            self._resize(size)

    def _resize(self, size: SlabSize) -> None:
        if size != self.size:
            self._keys = _resized(self._keys, size.num_slots, size.num_columns)
            self._values = _resized(self._values, size.num_slots, size.num_columns)


def _resized(array: mx.array, num_slots: int, num_columns: int) -> mx.array:
    """(slots, H, T, D) to this many slots and columns, cut off or filled up with zeros."""
    kept = array[:num_slots, :, :num_columns]
    more_slots, more_columns = num_slots - kept.shape[0], num_columns - kept.shape[2]
    if more_slots or more_columns:
        return mx.pad(kept, [(0, more_slots), (0, 0), (0, more_columns), (0, 0)])
    return kept if kept.shape == array.shape else mx.contiguous(kept)
