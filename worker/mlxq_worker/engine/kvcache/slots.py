"""One layer's keys and values: each row's in a slot of its own, from column 0, and each shared prefix's once.

Slots of about the same length make up a slab (`slot_allocator` says who lies where). A row that leaves costs nothing,
and one that comes takes its slot over in place. Refuses to know who attends to what: `runners/slot_cache` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import mlx.core as mx

from mlxq_worker.engine.kvcache.places import Places
from mlxq_worker.engine.kvcache.pool import Pool
from mlxq_worker.engine.kvcache.prefix import Prefix
from mlxq_worker.engine.kvcache.slot_allocator import Changes, SlabSize, Slot


class Slots:
    """H heads of keys and values, T columns or tokens, D numbers a head.

    Attributes:
        pool: the slots' keys and values; `None` before the first are written.
    """

    def __init__(self) -> None:
        self._sizes: Mapping[int, SlabSize] = {}
        self.pool: Pool | None = None
        self._prefixes: dict[Prefix, tuple[mx.array, mx.array]] = {}  # (1, H, T, D) each

    def __repr__(self) -> str:
        return f"Slots({self.pool or 'no slabs'}; {len(self._prefixes)} prefixes)"

    @property
    def arrays(self) -> list[mx.array]:
        """All that is there, computed or not."""
        prefixes = (array for pair in self._prefixes.values() for array in pair)
        return [*(self.pool.arrays if self.pool else ()), *prefixes]

    @property
    def written(self) -> Pool:
        """The pool, once something has been written to it."""
        assert self.pool is not None, "what is read has been written"
        return self.pool

    def arrange(self, changes: Changes) -> None:
        """Bring the slabs to where the rows of the next steps lie. There is nothing to bring before the first step."""
        self._sizes = changes.sizes
        pool = self.pool
        if pool is None:
            return
        if not changes.sizes:
            self.pool = None
            return
        pool.rearrange(changes.sizes, changes.moves)
        pool.wipe([(wipe.slot, range(wipe.num_columns)) for wipe in changes.wiped])

    def write(self, places: Places, keys: mx.array, values: mx.array) -> None:
        """Write tokens' keys and values, each (m, H, 1, D), to their places."""
        if self.pool is None:
            self.pool = Pool.empty(self._sizes, keys, values)
        self.pool.write(places, keys, values)

    def read(
        self, slab: int, first: int, last: int, num_columns: int, first_column: int = 0
    ) -> tuple[mx.array, mx.array]:
        """Keys and values of slots `first` to `last` of a slab, each (last - first, H, columns, D): of so many columns
        without those before the first one."""
        return self.written.read(slab, first, last, num_columns, first_column)

    def copy(self, pairs: Sequence[tuple[Slot, Slot]]) -> None:
        """Copy rows to other slots of their slabs, over what is there; no row is copied from a slot that another is
        copied to."""
        if self.pool is not None:
            for _, own in groupby(sorted(pairs, key=lambda pair: pair[0].slab), lambda pair: pair[0].slab):
                self.pool.copy(list(own))

    def extend_prefix(self, prefix: Prefix, keys: mx.array, values: mx.array) -> None:
        """Put the keys and values (1, H, t, D) of a prefix's next tokens behind what there is of it."""
        before = self._prefixes.get(prefix if prefix in self._prefixes or prefix.base is None else prefix.base)
        self._prefixes[prefix] = joined(before, (keys, values)) if before else (keys, values)

    def read_prefix(self, prefix: Prefix) -> tuple[mx.array, mx.array]:
        """What there is of a prefix's keys and values, each (1, H, T, D)."""
        return self._prefixes[prefix]

    def copy_prefix(self, prefix: Prefix, slots: Sequence[Slot]) -> None:
        """Copy what there is of a prefix to the first columns of these slots."""
        keys, values = (array.swapaxes(0, 2) for array in self._prefixes[prefix])  # (T, H, 1, D)
        for slot in slots:  # a row's own tokens have been written by now
            self.write(Places.of([(slot, range(len(keys)))]), keys, values)

    def evict(self, prefix: Prefix) -> None:
        """Free a prefix."""
        self._prefixes.pop(prefix, None)


def joined(before: tuple[mx.array, mx.array], after: tuple[mx.array, mx.array]) -> tuple[mx.array, mx.array]:
    """Keys and values of tokens one after another: (B, H, t, D) and (B, H, u, D) to (B, H, t + u, D), twice."""
    return mx.concatenate([before[0], after[0]], axis=2), mx.concatenate([before[1], after[1]], axis=2)
