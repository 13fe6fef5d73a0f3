"""Where rows lie: slabs of equally long slots, a slab for each size class of columns, so that a long row takes memory
and time for itself and not for every other row.

A row begins in the slab of its length and moves up when it outgrows that. A leaving row's slot goes to the next one
that needs a slot of its slab. Once half of a slab's slots are holes its last rows move into them: a hole costs a little
at every step, a move as much as many steps. What rows have left behind stays until it is far more than they need, or
until a slab grows beside it and all of them together would have more room than the rows may ever need: then everything
is copied anyway, and nothing is left over.
Plain Python: says who lies where, what has to move and how large the slabs are; `slots` holds the arrays, and `budget`
counts them.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar

R = TypeVar("R", bound=Hashable)

COLUMN_STEP = 256
APART = 64


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """Number `index` of slab `slab`. Slab s holds rows of up to `COLUMN_STEP` times 2 to the power of s columns, and
    slab `APART` + s such rows that lie apart."""

    slab: int
    index: int


@dataclass(frozen=True, slots=True)
class Wipe:
    """What rows that have left may have written in a slot: so many columns from the first."""

    slot: Slot
    num_columns: int


@dataclass(frozen=True, slots=True)
class SlabSize:
    """Slots, and columns in each of them."""

    num_slots: int
    num_columns: int

    @property
    def area(self) -> int:
        return self.num_slots * self.num_columns


@dataclass(frozen=True, slots=True)
class Changes:
    """What brings the slabs to where the rows now lie: copies from slot to slot, one after another, then what to
    wipe where new rows lie. `sizes` is what each slab has after that; there are no others."""

    moves: tuple[tuple[Slot, Slot], ...]
    wiped: tuple[Wipe, ...]
    sizes: Mapping[int, SlabSize]


class SlotAllocator(Generic[R]):
    """The slot of every row in the batch."""

    def __init__(self) -> None:
        self._slots: dict[R, Slot] = {}
        self._columns: dict[R, int] = {}
        self._apart: frozenset[R] = frozenset()
        self._left_behind: dict[Slot, int] = {}  # columns that the last row there wrote
        self._used: defaultdict[int, set[int]] = defaultdict(set)
        self._sizes: Mapping[int, SlabSize] = {}

    def __repr__(self) -> str:
        used = (f"{slab}: {len(slots)}" for slab, slots in sorted(self._used.items()) if slots)
        return f"SlotAllocator({', '.join(used)})"

    def __getitem__(self, row: R) -> Slot:
        return self._slots[row]

    def arrange(
        self, columns: Mapping[R, int], apart: Collection[R] = (), room: int = sys.maxsize, *, makes_room: bool = False
    ) -> Changes:
        """Give each of these rows a slot for its columns; all other rows have left. Those that lie `apart` share no
        slab with others; a row does so for as long as it is here, or never.

        Args:
            room: as many columns as all slabs together may have beside what is needed now.
            makes_room: whether something else than a slab is about to take memory.
        """
        self._apart = frozenset(apart)
        for row in [row for row in self._slots if row not in columns]:
            self._leave(row)
        moves = [(self._slots[row], self._rise(row, slab)) for row, slab in self._outgrown(columns)]
        wiped = [self._enter(row, num) for row, num in columns.items() if row not in self._slots]
        moves += [move for slab in self._used for move in self._closing_moves(slab, least_share=2)]
        self._columns = dict(columns)
        before, self._sizes = self._sizes, self._kept()
        if area(self._sizes) > room and (makes_room or _grows(before, self._sizes)):
            moves += [move for slab in self._used for move in self._closing_moves(slab)]
            self._sizes = self._needed()
        return Changes(tuple(moves), tuple(wipe for wipe in wiped if wipe.num_columns), self._sizes)

    def passed(self, num_steps: int) -> None:
        """Nobody has come, left or outgrown a slab for so many steps, in each of which a row may have got a column."""
        self._columns = {row: num + num_steps for row, num in self._columns.items()}

    def _kept(self) -> Mapping[int, SlabSize]:
        """What slabs have room for, up to their last rows and some more, and what they had before unless that is far
        more than they need."""
        needed = {slab: SlabSize(_room(size.num_slots), size.num_columns) for slab, size in self._needed().items()}
        return {slab: _kept_size(self._sizes.get(slab), size) for slab, size in needed.items()}

    def _needed(self) -> Mapping[int, SlabSize]:
        """What each slab needs up to its last row."""
        apart = {row for row in self._columns if row in self._apart}
        sizes = slab_sizes(num for row, num in self._columns.items() if row not in apart)
        sizes |= {APART + slab: size for slab, size in slab_sizes(self._columns[row] for row in apart).items()}
        return {slab: SlabSize(max(self._used[slab]) + 1, size.num_columns) for slab, size in sizes.items()}

    def _outgrown(self, columns: Mapping[R, int]) -> list[tuple[R, int]]:
        """The rows that need another slab, and which; the longest first, since their slots may be taken next."""
        slabs = {row: self._slab_for(row, columns[row]) for row in self._slots}
        rising = [(row, slab) for row, slab in slabs.items() if slab != self._slots[row].slab]
        return sorted(rising, key=lambda each: each[1], reverse=True)

    def _enter(self, row: R, num_columns: int) -> Wipe:
        slot = self._assign(row, self._slab_for(row, num_columns))
        return Wipe(slot, self._left_behind.pop(slot, 0))

    def _slab_for(self, row: R, num_columns: int) -> int:
        return slab_of(num_columns) + (APART if row in self._apart else 0)

    def _rise(self, row: R, slab: int) -> Slot:
        self._leave(row)
        slot = self._assign(row, slab)
        self._left_behind.pop(slot, None)  # a copy writes over all columns
        return slot

    def _assign(self, row: R, slab: int) -> Slot:
        used = self._used[slab]
        slot = Slot(slab, next(index for index in count() if index not in used))
        used.add(slot.index)
        self._slots[row] = slot
        return slot

    def _leave(self, row: R) -> None:
        slot = self._slots.pop(row)
        self._used[slot.slab].remove(slot.index)
        self._left_behind[slot] = self._columns[row]

    def _closing_moves(self, slab: int, least_share: int = 1) -> list[tuple[Slot, Slot]]:
        """Move the slab's last rows into its holes, if no more than one part in `least_share` of its slots is in use.
        New rows never move: they took the first holes."""
        used = self._used[slab]
        if not used or max(used) + 1 < max(least_share * len(used), len(used) + 1):
            return []
        last = sorted((row for row, slot in self._slots.items() if slot.slab == slab), key=self._slots.__getitem__)
        moving = [row for row in reversed(last) if self._slots[row].index >= len(used)]
        return [(self._slots[row], self._rise(row, slab)) for row in moving]


def _kept_size(old: SlabSize | None, needed: SlabSize) -> SlabSize:
    """A slab grows by what it needs; what it does not need is freed once that is far more."""
    if old is None:
        return needed
    grown = SlabSize(max(old.num_slots, needed.num_slots), max(old.num_columns, needed.num_columns))
    return needed if 2 * needed.area <= grown.area else grown


def _grows(old: Mapping[int, SlabSize], new: Mapping[int, SlabSize]) -> bool:
    """Whether some slab has more slots or columns than before."""
    none = SlabSize(0, 0)
    befores = ((old.get(slab, none), size) for slab, size in new.items())
    return any(b.num_slots < size.num_slots or b.num_columns < size.num_columns for b, size in befores)


def num_steady_steps(num_columns: Iterable[int]) -> int:
    """For how many steps, each a column at most, rows of these many columns keep their slots and slabs their sizes."""
    return min((-num % COLUMN_STEP for num in num_columns), default=0)


def slab_of(num_columns: int) -> int:
    """The slab for a row of this many columns."""
    return (max(0, num_columns - 1) // COLUMN_STEP).bit_length()


def slab_sizes(lengths: Iterable[int]) -> dict[int, SlabSize]:
    """What each slab needs for rows of these many columns."""
    in_slabs: defaultdict[int, list[int]] = defaultdict(list)
    for length in lengths:
        in_slabs[slab_of(length)].append(length)
    return {slab: SlabSize(_room(len(rows)), _rounded(max(rows))) for slab, rows in in_slabs.items()}


def largest_sizes(lengths: Iterable[int]) -> dict[int, SlabSize]:
    """What slabs come to need while rows become as long as this: one that becomes longer than a slab is for may make
    that slab as long as can be on its way."""
    sizes = slab_sizes(lengths)
    longest = max(sizes, default=0)
    return {s: size if s == longest else SlabSize(size.num_slots, COLUMN_STEP << s) for s, size in sizes.items()}


def area(sizes: Mapping[int, SlabSize]) -> int:
    """How many columns slabs have together."""
    return sum(size.area for size in sizes.values())


def _rounded(num_columns: int) -> int:
    return max(1, -(-num_columns // COLUMN_STEP)) * COLUMN_STEP


def _room(num_slots: int) -> int:
    """Up to a quarter more than this: slots are added one by one, and every growth copies."""
    step = 1 << max(0, num_slots.bit_length() - 3)
    return -(-num_slots // step) * step
