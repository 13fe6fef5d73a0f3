"""Rows that somebody waits for go before bulk work, which goes on all the same: counted in rows and steps."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests.support.row_specs import name_of, row_spec

from mlxq_worker.engine.api import most_live_rows
from mlxq_worker.engine.rows.beam_group import new_group
from mlxq_worker.engine.scheduling.live_share import MAX_IN_A_ROW
from mlxq_worker.engine.scheduling.scheduler import Scheduler


def decode(token_ids: Sequence[int]) -> str:
    return "t" * len(token_ids)


class Batch:
    """A scheduler whose device is never late. `entered` has the rows in the order in which they got their prompt in;
    `running` those of the last step, in which ``L`` begins the name of a live one."""

    def __init__(self, width: int) -> None:
        self.scheduler = Scheduler(width)
        self.entered: list[str] = []
        self.ended: list[str] = []
        self.running: list[str] = []
        self.num_steps = 0

    def add(self, name: str, num_tokens: int) -> None:
        self.scheduler.add(new_group(row_spec(row_id=name, max_tokens=num_tokens, is_live=name[0] == "L"), decode))

    def step(self) -> None:
        self.num_steps += 1
        plan, _ = self.scheduler.schedule(0.0)
        self.entered += [name_of(chunk.row.spec.row_id) for chunk in plan.prefill]
        rows = [*plan.decoding, *(chunk.row for chunk in plan.prefill)]
        self.running = [name_of(row.spec.row_id) for row in rows]
        self.ended += [name_of(result.row_id) for result in self.scheduler.commit(rows, [7] * len(rows), 0.0)]

    def steps(self, number: int) -> None:
        for _ in range(number):
            self.step()

    @property
    def num_live(self) -> int:
        return sum(name[0] == "L" for name in self.running)


@pytest.mark.parametrize(("width", "most"), [(1, 1), (2, 1), (3, 2), (4, 3), (32, 24)])
def test_three_quarters_of_the_batch_may_be_live(width: int, most: int) -> None:
    assert most_live_rows(width) == most


def test_a_live_row_enters_as_soon_as_any_row_has_ended() -> None:
    batch = Batch(4)
    for index in range(100):
        batch.add(f"B{index}", 5 + index % 4)
    batch.steps(2)

    batch.add("L0", 3)
    while not batch.ended:
        batch.step()
    batch.step()

    assert batch.entered[-1] == "L0"


@pytest.mark.parametrize("width", [2, 4, 8, 32])
def test_live_rows_that_never_stop_coming_leave_bulk_work_its_quarter(width: int) -> None:
    batch = Batch(width)
    for index in range(40 * width):
        batch.add(f"L{index}", 4)
        batch.add(f"B{index}", 10)

    batch.steps(20)
    for _ in range(40):
        batch.step()
        assert len(batch.running) == width
        assert batch.num_live == most_live_rows(width)


def test_where_there_is_room_for_one_row_bulk_work_gets_its_turn() -> None:
    batch = Batch(1)
    for index in range(20):
        batch.add(f"L{index}", 1)
        batch.add(f"B{index}", 1)

    batch.steps(12)

    assert "".join(name[0] for name in batch.entered) == "LLLB" * 3
    assert MAX_IN_A_ROW == 3


def test_live_rows_take_all_of_a_batch_that_nobody_else_waits_for() -> None:
    batch = Batch(4)
    for index in range(8):
        batch.add(f"L{index}", 5)

    batch.step()

    assert batch.num_live == 4


def test_live_rows_go_in_the_order_in_which_they_came() -> None:
    batch = Batch(2)
    for index in range(9):
        batch.add(f"L{index}", 1 + index % 3)
        batch.add(f"B{index}", 1 + index % 2)

    batch.steps(40)

    live = [name for name in batch.entered if name[0] == "L"]
    assert live == sorted(live)
    assert len(batch.ended) == 18


def test_a_line_of_live_rows_waits_no_longer_than_the_policy_says() -> None:
    """Every running row has ended after as many steps as bulk answers have tokens; from then on the live share of the
    batch is theirs, and each of its rows takes the next in line."""
    width, bulk_tokens, live_tokens, num_live = 32, 40, 10, 200
    batch = Batch(width)
    for index in range(1000):
        batch.add(f"B{index}", 1 + index % bulk_tokens)
    batch.steps(bulk_tokens)
    began = batch.num_steps
    for index in range(num_live):
        batch.add(f"L{index}", live_tokens)

    entered_at: dict[str, int] = {}
    while len(entered_at) < num_live:
        batch.step()
        for name in batch.entered:
            entered_at.setdefault(name, batch.num_steps - began) if name[0] == "L" else None

    for index in range(num_live):
        assert entered_at[f"L{index}"] <= bulk_tokens + 1 + (index // most_live_rows(width)) * live_tokens


def test_the_rows_of_one_live_request_enter_together() -> None:
    batch = Batch(4)
    for index in range(8):
        batch.add(f"B{index}", 2)
    for name in ("La", "La#1", "Lb"):
        batch.add(name, 2)

    batch.steps(6)

    assert [name for name in batch.entered if name[0] == "L"] == ["La", "La#1", "Lb"]
