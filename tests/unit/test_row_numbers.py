"""Which number each row has."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlxq_worker.engine.kvcache.row_numbers import RowNumbers


def numbers_of(numbers: RowNumbers[str]) -> str:
    """The rows by their numbers; a dot where there is none."""
    named = {number: row for row, number in numbers.of_rows.items()}
    return "".join(named.get(number, ".") for number in range(1 + max(named, default=-1)))


def test_a_row_keeps_its_number_and_one_that_enters_takes_the_lowest_that_is_free() -> None:
    numbers = RowNumbers[str]()
    numbers.arrange("abcd")

    moves = numbers.arrange("acdef")

    assert (moves, numbers_of(numbers)) == ((), "aecdf")
    assert numbers["e"] == 1


def test_the_last_rows_move_down_once_half_of_the_numbers_are_free() -> None:
    numbers = RowNumbers[str]()
    numbers.arrange("abcdef")

    first = numbers.arrange("bdef")
    second = numbers.arrange("bef")

    assert first == ()
    assert (second, numbers_of(numbers)) == (((4, 0), (5, 2)), "ebf")


def test_and_when_rows_enter_and_leave_numbers_free_below_the_last() -> None:
    numbers = RowNumbers[str]()
    numbers.arrange("abcdef")

    moves = numbers.arrange("adefg")

    assert (moves, numbers_of(numbers)) == (((5, 2),), "agfde")


@given(st.lists(st.sets(st.integers(0, 9)), max_size=12))
def test_no_two_rows_have_one_number_and_no_move_ends_where_another_begins(batches: list[set[int]]) -> None:
    numbers, there = RowNumbers[int](), dict[int, int]()

    for rows in batches:
        entering = rows - numbers.of_rows.keys()
        moves = numbers.arrange(rows)
        there = {number: row for number, row in there.items() if row in rows}
        for before, after in moves:
            assert after not in there
            there[after] = there.pop(before)
        there |= {numbers[row]: row for row in entering}

        assert there == {number: row for row, number in numbers.of_rows.items()}
        assert len(there) == len(rows)
        assert max(there, default=-1) + 1 <= (len(rows) if entering else max(2 * len(rows) - 1, 0))
