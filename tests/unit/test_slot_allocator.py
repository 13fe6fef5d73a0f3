"""Who lies where, and that what is copied about ends up there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxq_worker.engine.kvcache.slot_allocator import (
    APART,
    COLUMN_STEP,
    Changes,
    SlabSize,
    Slot,
    SlotAllocator,
    Wipe,
    num_steady_steps,
    slab_of,
    slab_sizes,
)


@pytest.mark.parametrize(("num_columns", "slab"), [(0, 0), (1, 0), (256, 0), (257, 1), (512, 1), (513, 2), (4096, 4)])
def test_a_slab_is_for_rows_up_to_twice_as_long_as_those_of_the_one_before(num_columns: int, slab: int) -> None:
    assert slab_of(num_columns) == slab
    assert COLUMN_STEP << slab >= num_columns


def test_a_long_row_takes_room_for_itself_alone() -> None:
    sizes = slab_sizes([100] * 31 + [4000])

    assert sizes == {0: SlabSize(32, 256), 4: SlabSize(1, 4096)}


def test_a_row_moves_up_when_it_outgrows_its_slab() -> None:
    slots = SlotAllocator[str]()
    slots.arrange({"a": 250, "b": 10, "c": 10})

    changes = slots.arrange({"a": 257, "b": 11, "c": 11})

    assert changes.moves == ((Slot(0, 0), Slot(1, 0)),)
    assert changes.wiped == ()
    assert repr(slots) == "SlotAllocator(0: 2, 1: 1)"


def test_the_last_rows_move_once_half_of_the_slots_are_holes() -> None:
    # given
    slots = SlotAllocator[str]()
    slots.arrange(dict.fromkeys("abcdef", 10))

    # when
    first = slots.arrange(dict.fromkeys("bdef", 11))
    second = slots.arrange(dict.fromkeys("bef", 12))

    # then
    assert first == Changes((), (), {0: SlabSize(6, 256)})
    assert second.moves == ((Slot(0, 5), Slot(0, 0)), (Slot(0, 4), Slot(0, 2)))
    assert second.sizes == {0: SlabSize(3, 256)}


def test_a_new_row_takes_the_slot_of_one_that_left_and_nothing_moves() -> None:
    slots = SlotAllocator[str]()
    slots.arrange({"a": 1, "b": 1, "c": 1})

    changes = slots.arrange({"a": 2, "d": 9, "c": 2})

    assert changes == Changes((), (Wipe(Slot(0, 1), 1),), {0: SlabSize(3, 256)})
    assert slots["d"] == Slot(0, 1)


NOBODY = -1


class Tape:
    """Slabs that hold row names instead of numbers."""

    def __init__(self) -> None:
        self.slots = SlotAllocator[int]()
        self.cells: defaultdict[Slot, list[int]] = defaultdict(lambda: [NOBODY] * 10_800)

    def arrange(self, columns: Mapping[int, int]) -> Changes:
        changes = self.slots.arrange(columns)
        for source, target in changes.moves:
            self.cells[target] = list(self.cells[source])
        for wipe in changes.wiped:
            self.cells[wipe.slot][: wipe.num_columns] = [NOBODY] * wipe.num_columns
        return changes


@given(
    steps=st.lists(
        st.dictionaries(st.integers(0, 9), st.integers(1, 900), max_size=8),
        min_size=1,
        max_size=12,
    )
)
def test_every_row_keeps_its_own_and_fewer_than_half_of_the_slots_are_holes(
    steps: list[dict[int, int]],
) -> None:
    tape, lengths = Tape(), dict[int, int]()

    for growth in steps:
        known = lengths
        lengths = {row: known.get(row, 0) + more for row, more in growth.items()}
        changes = tape.arrange(lengths)
        for row in lengths:
            slot = tape.slots[row]
            num_written = known.get(row, 0)
            assert set(tape.cells[slot][:num_written]) <= {row}
            assert set(tape.cells[slot][num_written:]) == {NOBODY}
            tape.cells[slot][: lengths[row]] = [row] * lengths[row]
            assert lengths[row] <= changes.sizes[slot.slab].num_columns
        in_slabs = sorted(tape.slots[row] for row in lengths)
        assert len(set(in_slabs)) == len(lengths)
        for slab, size in changes.sizes.items():
            slots = [slot.index for slot in in_slabs if slot.slab == slab]
            num_slots = max(slots) + 1
            assert num_slots < 2 * len(slots)
            assert num_slots <= size.num_slots <= max(num_slots, num_slots * 5 / 4)


# --- Steps in which nothing changes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_columns", "num_steps"), [((1,), 255), ((256,), 0), ((257,), 255), ((100, 300, 255), 1), ((), 0)]
)
def test_rows_keep_their_slots_until_one_of_them_fills_its_columns(
    num_columns: tuple[int, ...], num_steps: int
) -> None:
    slots, columns = SlotAllocator[int](), dict(enumerate(num_columns))
    before = slots.arrange(columns).sizes

    after = slots.arrange({row: num + num_steady_steps(num_columns) for row, num in columns.items()})

    assert num_steady_steps(num_columns) == num_steps
    assert (after.sizes, after.moves) == (before, ())


def test_what_rows_got_in_steps_that_nobody_looked_at_is_wiped_too() -> None:
    slots = SlotAllocator[str]()
    slots.arrange({"a": 10})

    slots.passed(7)
    changes = slots.arrange({"b": 3})

    assert changes.wiped == (Wipe(Slot(0, 0), 17),)


def test_rows_that_lie_apart_share_no_slab_with_others_and_take_each_others_slots() -> None:
    slots = SlotAllocator[str]()
    slots.arrange({"a": 10, "b": 10, "c": 300}, apart={"b", "c"})
    slabs = {row: slots[row].slab for row in "abc"}

    slots.arrange({"a": 11, "c": 301, "d": 5}, apart={"c", "d"})

    assert slabs == {"a": 0, "b": APART, "c": APART + 1}
    assert slots["d"] == Slot(APART, 0)
