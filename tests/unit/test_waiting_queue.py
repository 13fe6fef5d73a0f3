"""Who is next."""

from __future__ import annotations

from tests.support.row_specs import name_of, row_spec

from mlxq_worker.engine.rows.row import Row
from mlxq_worker.engine.scheduling.waiting_queue import PATIENCE, WaitingLine


def line_of(lengths: dict[str, int], *, longest_first: bool) -> WaitingLine:
    line = WaitingLine(longest_first=longest_first)
    for row_id, length in lengths.items():
        line.add(Row(row_spec(row_id=row_id, prompt_ids=(1,) * length), lambda ids: ""))
    return line


def taken_from(line: WaitingLine) -> list[str]:
    order = []
    while line:
        row = line.next
        line.remove(row)
        order.append(name_of(row.spec.row_id))
    return order


def test_rows_go_in_the_order_in_which_they_came() -> None:
    assert taken_from(line_of({"a": 2, "b": 3, "c": 1}, longest_first=False)) == ["a", "b", "c"]


def test_the_longest_prompt_goes_first_and_of_equal_ones_the_first_that_came() -> None:
    assert taken_from(line_of({"a": 2, "b": 3, "c": 1, "d": 3}, longest_first=True)) == ["b", "d", "a", "c"]


def test_no_row_waits_for_more_than_so_many_longer_ones() -> None:
    line = line_of({"short": 1} | {f"long {index}": 2 for index in range(2 * PATIENCE)}, longest_first=True)

    assert taken_from(line).index("short") == PATIENCE


def test_a_row_that_ended_while_it_waited_is_gone() -> None:
    line = line_of({"a": 1, "b": 1}, longest_first=False)
    line.next.abort("cancelled", now=0.0)

    line.drop_finished()

    assert [name_of(row.spec.row_id) for row in line] == ["b"]
