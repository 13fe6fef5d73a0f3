"""Which number each row of the batch has: where its state lies, whatever its slot.

A row keeps its number, and one that enters takes the lowest that is free. There is a state for each number up to the
last row's, whether anybody has it. So once half of them are free the last rows move down, and whenever rows enter and
leave some free. Plain Python: `states` holds the arrays.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from itertools import count
from typing import Generic, TypeVar

R = TypeVar("R", bound=Hashable)


class RowNumbers(Generic[R]):
    """The number of every row in the batch."""

    def __init__(self) -> None:
        self._numbers: dict[R, int] = {}

    def __repr__(self) -> str:
        return f"RowNumbers({sorted(self._numbers.values())})"

    def __getitem__(self, row: R) -> int:
        return self._numbers[row]

    @property
    def of_rows(self) -> Mapping[R, int]:
        """All of them."""
        return self._numbers

    def arrange(self, rows: Collection[R]) -> tuple[tuple[int, int], ...]:
        """Give each of these rows a number; all others have left.

        Returns:
            The moves from number to number, none of which ends where another begins.
        """
        kept = {row: number for row, number in self._numbers.items() if row in rows}
        taken = set(kept.values())
        free = (number for number in count() if number not in taken)
        entering = {row: next(free) for row in rows if row not in kept}
        self._numbers = kept | entering
        num_rows = len(self._numbers)
        num_numbers = 1 + max(self._numbers.values(), default=-1)
        if num_numbers == num_rows or not (entering or num_numbers >= 2 * num_rows):
            return ()
        holes = sorted(set(range(num_rows)) - set(self._numbers.values()))
        last = [(row, number) for row, number in self._numbers.items() if number >= num_rows]  # none that has entered
        moves = {row: hole for (row, _), hole in zip(last, holes, strict=True)}
        self._numbers |= moves
        return tuple((number, moves[row]) for row, number in last)
