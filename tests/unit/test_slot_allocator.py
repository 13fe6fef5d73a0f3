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
    area,
    largest_sizes,
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


def test_slots_that_rows_leave_behind_stay_until_they_are_half_of_a_slab() -> None:
    slots = SlotAllocator[str]()
    slots.arrange(dict.fromkeys("abcd", 250))

    fewer = slots.arrange({"a": 257, "b": 251, "c": 251, "d": 251})
    few = slots.arrange({"a": 258, "b": 257, "c": 252, "d": 252})

    assert fewer.sizes == {0: SlabSize(4, 256), 1: SlabSize(1, 512)}
    assert few.sizes == {0: SlabSize(2, 256), 1: SlabSize(2, 512)}


def test_they_go_when_a_slab_grows_and_rows_would_have_more_room_than_they_may_ever_need() -> None:
    # given four rows, of which the first may grow beyond the slab of the others
    slots = SlotAllocator[str]()
    slots.arrange(dict.fromkeys("abcd", 250), room=512 + 3 * 256)

    # when
    changes = slots.arrange({"a": 257, "b": 251, "c": 251, "d": 251}, room=512 + 3 * 256)

    # then the last row lies where it did
    assert changes.moves == ((Slot(0, 0), Slot(1, 0)), (Slot(0, 3), Slot(0, 0)))
    assert changes.sizes == {0: SlabSize(3, 256), 1: SlabSize(1, 512)}


def test_or_when_something_else_takes_memory() -> None:
    slots = SlotAllocator[str]()
    slots.arrange(dict.fromkeys("abcde", 250))

    kept = slots.arrange(dict.fromkeys("bce", 250), room=3 * 256)
    trimmed = slots.arrange(dict.fromkeys("bce", 250), room=3 * 256, makes_room=True)

    assert kept.sizes == {0: SlabSize(5, 256)}
    assert trimmed.sizes == {0: SlabSize(3, 256)}
    assert trimmed.moves == ((Slot(0, 4), Slot(0, 0)),)


@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [
        ([], {}),
        ([100, 300], {0: SlabSize(1, 256), 1: SlabSize(1, 512)}),
        ([520] * 3, {2: SlabSize(3, 768)}),
        ([520] * 3 + [1030], {2: SlabSize(3, 1024), 3: SlabSize(1, 1280)}),
    ],
    ids=["nobody", "short", "of one slab", "one on its way through a slab"],
)
def test_rows_on_their_way_to_longer_slabs_make_those_they_pass_as_long_as_can_be(
    lengths: list[int], sizes: dict[int, SlabSize]
) -> None:
    assert largest_sizes(lengths) == sizes


@given(
    rows=st.lists(
        st.tuples(st.integers(1, 1200), st.integers(0, 500), st.integers(0, 6), st.integers(1, 6)), max_size=14
    )
)
def test_slabs_never_have_more_room_than_was_reckoned_for_the_rows_so_far(
    rows: list[tuple[int, int, int, int]],
) -> None:
    # given rows of so many columns that grow by so many, from some step on, in some steps
    slots, most, area_before = SlotAllocator[int](), 0, 0

    for step in range(12):
        running = {
            row: (prompt + more * (step - first) // num_steps, prompt + more)
            for row, (prompt, more, first, num_steps) in enumerate(rows)
            if first <= step <= first + num_steps
        }
        room = area(largest_sizes(end for _, end in running.values()))
        most = max(most, room)

        # when
        changes = slots.arrange({row: now for row, (now, _) in running.items()}, room=room)

        # then
        assert area(changes.sizes) <= max(most, area_before)
        assert area(changes.sizes) <= most
        area_before = area(changes.sizes)


def test_a_new_row_takes_the_slot_of_one_that_left_and_nothing_moves() -> None:
    slots = SlotAllocator[str]()
    slots.arrange({"a": 1, "b": 1, "c": 1})

    changes = slots.arrange({"a": 2, "d": 9, "c": 2})

    assert changes == Changes((), (Wipe(Slot(0, 1), 1),), {0: SlabSize(3, 256)})
    assert slots["d"] == Slot(0, 1)


NOBODY = -1


class Tape:
    """Slabs that hold row names instead of numbers."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.slots = SlotAllocator[int]()
        self.cells: defaultdict[Slot, list[int]] = defaultdict(lambda: [NOBODY] * 10_800)

    def arrange(self, columns: Mapping[int, int]) -> Changes:
        changes = self.slots.arrange(columns, room=self.room)
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
    ),
    room=st.sampled_from([0, 2048, 1 << 40]),
)
def test_every_row_keeps_its_own_and_fewer_than_half_of_the_slots_are_holes(
    steps: list[dict[int, int]], room: int
) -> None:
    tape, lengths = Tape(room), dict[int, int]()

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
            assert num_slots <= size.num_slots
            longest = max(lengths[row] for row in lengths if tape.slots[row].slab == slab)
            num_columns = -(-longest // COLUMN_STEP) * COLUMN_STEP
            assert size.area < 2 * max(num_slots, num_slots * 5 / 4) * num_columns


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
