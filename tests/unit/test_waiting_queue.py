"""Who is next."""

from __future__ import annotations

from tests.support.row_specs import name_of, row_spec

from mlxq_worker.engine.rows.group import RowGroup
from mlxq_worker.engine.rows.row import Row
from mlxq_worker.engine.scheduling.waiting_queue import PATIENCE, WaitingQueue


def queue_of(lengths: dict[str, int], *, longest_first: bool) -> WaitingQueue:
    queue = WaitingQueue(longest_first=longest_first)
    for row_id, length in lengths.items():
        queue.add(RowGroup(Row(row_spec(row_id=row_id, prompt_ids=(1,) * length), lambda ids: "")))
    return queue


def taken_from(queue: WaitingQueue) -> list[str]:
    order = []
    while queue:
        row = queue.next
        queue.remove(row)
        order.append(name_of(row.spec.row_id))
    return order


def test_rows_go_in_the_order_in_which_they_came() -> None:
    assert taken_from(queue_of({"a": 2, "b": 3, "c": 1}, longest_first=False)) == ["a", "b", "c"]


def test_the_longest_prompt_goes_first_and_of_equal_ones_the_first_that_came() -> None:
    assert taken_from(queue_of({"a": 2, "b": 3, "c": 1, "d": 3}, longest_first=True)) == ["b", "d", "a", "c"]


def test_no_row_waits_for_more_than_so_many_longer_ones() -> None:
    queue = queue_of({"short": 1} | {f"long {index}": 2 for index in range(2 * PATIENCE)}, longest_first=True)

    assert taken_from(queue).index("short") == PATIENCE


def test_a_row_that_ended_while_it_waited_is_gone() -> None:
    queue = queue_of({"a": 1, "b": 1}, longest_first=False)
    queue.next.abort("cancelled", now=0.0)

    queue.drop_finished()

    assert [name_of(row.spec.row_id) for row in queue] == ["b"]
