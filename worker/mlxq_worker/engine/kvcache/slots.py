"""One layer's keys and values: each row's in a slot of its own, from column 0, and each shared prefix's once.

Slots of about the same length make up a slab (`slot_allocator` says who lies where). A row that leaves costs nothing,
and one that comes takes its slot over in place. Refuses to know who attends to what: `runners/slot_cache` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import mlx.core as mx

from mlxq_worker.engine.kvcache.prefix import Prefix
from mlxq_worker.engine.kvcache.slab import Slab
from mlxq_worker.engine.kvcache.slot_allocator import Changes, SlabSize, Slot


@dataclass(frozen=True, slots=True)
class Write:
    """Which of the step's tokens go to a slab, (m,) or a slice of them, `None` for all, and to which slots and columns:
    (m, 1) each."""

    slab: int
    tokens: mx.array | slice | None
    slots: mx.array
    columns: mx.array


class Slots:
    """H heads of keys and values, T columns or tokens, D numbers a head."""

    def __init__(self) -> None:
        self._sizes: Mapping[int, SlabSize] = {}
        self._slabs: dict[int, Slab] = {}
        self._prefixes: dict[Prefix, tuple[mx.array, mx.array]] = {}  # (1, H, T, D) each

    def __repr__(self) -> str:
        slabs = [repr(slab) for _, slab in sorted(self._slabs.items())]
        return f"Slots({', '.join(slabs) or 'no slabs'}; {len(self._prefixes)} prefixes)"

    @property
    def arrays(self) -> list[mx.array]:
        """All that is there, computed or not."""
        prefixes = (array for pair in self._prefixes.values() for array in pair)
        return [*(array for slab in self._slabs.values() for array in slab.arrays), *prefixes]

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

    def write(self, writes: Sequence[Write], keys: mx.array, values: mx.array) -> None:
        """Write tokens' keys and values, each (M, H, D), to where `writes` says."""
        for write in writes:
            if write.slab not in self._slabs:
                self._slabs[write.slab] = Slab.empty(self._sizes[write.slab], keys[..., None, :], values[..., None, :])
            own = (keys, values) if write.tokens is None else (keys[write.tokens], values[write.tokens])
            self._slabs[write.slab].write(write.slots, write.columns, *own)

    def read(self, slab: int, first: int, last: int, num_columns: int) -> tuple[mx.array, mx.array]:
        """Keys and values of slots `first` to `last` of a slab, each (last - first, H, num_columns, D)."""
        return self._slabs[slab].part(first, last, num_columns)

    def copy(self, pairs: Sequence[tuple[Slot, Slot]]) -> None:
        """Copy rows to other slots of their slabs, over what is there; no row is copied from a slot that another is
        copied to."""
        in_slabs: dict[int, list[tuple[int, int]]] = {}
        for source, target in pairs:
            in_slabs.setdefault(source.slab, []).append((source.index, target.index))
        for index, slots in in_slabs.items():
            self._move(index, index, slots)

    def extend_prefix(self, prefix: Prefix, keys: mx.array, values: mx.array) -> None:
        """Put the keys and values (1, H, t, D) of a prefix's next tokens behind what there is of it."""
        before = self._prefixes.get(prefix if prefix in self._prefixes or prefix.base is None else prefix.base)
        self._prefixes[prefix] = joined(before, (keys, values)) if before else (keys, values)

    def read_prefix(self, prefix: Prefix) -> tuple[mx.array, mx.array]:
        """What there is of a prefix's keys and values, each (1, H, T, D)."""
        return self._prefixes[prefix]

    def copy_prefix(self, prefix: Prefix, slots: Sequence[Slot]) -> None:
        """Copy what there is of a prefix to the first columns of these slots."""
        keys, values = (array[0].swapaxes(0, 1) for array in self._prefixes[prefix])  # (T, H, D)
        columns = mx.arange(keys.shape[0], dtype=mx.uint32)[:, None]  # (T, 1)
        for slot in slots:
            slab = self._slabs[slot.slab]  # a row's own tokens have been written by now
            slab.write(mx.full(columns.shape, slot.index, mx.uint32), columns, keys, values)

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


def joined(before: tuple[mx.array, mx.array], after: tuple[mx.array, mx.array]) -> tuple[mx.array, mx.array]:
    """Keys and values of tokens one after another: (B, H, t, D) and (B, H, u, D) to (B, H, t + u, D), twice."""
    return mx.concatenate([before[0], after[0]], axis=2), mx.concatenate([before[1], after[1]], axis=2)
