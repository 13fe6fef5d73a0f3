"""What the order of rows costs in prompt tokens: many requests over a few prefixes, and memory for fewer of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from tests.support.row_specs import row_named, row_spec

from mlxq_worker.engine.api import RowSpec
from mlxq_worker.engine.rows.group import RowGroup
from mlxq_worker.engine.rows.row import Row
from mlxq_worker.engine.scheduling.scheduler import Scheduler

WIDTH = 4
PREFIX_TOKENS = 128
NUM_PREFIXES = 6
ROOM = 2 * PREFIX_TOKENS
"""For two prefixes."""


def interleaved(num_requests: int, *, prefixes: int = NUM_PREFIXES, limit: int = 9) -> list[RowSpec]:
    """Request i begins with prefix i modulo so many, and has ten tokens of its own."""
    return [
        row_spec(
            row_id=str(index),
            prompt_ids=(*[index % prefixes] * PREFIX_TOKENS, *range(100 + 10 * index, 110 + 10 * index)),
            max_tokens=1 + index * 5 % limit,
        )
        for index in range(num_requests)
    ]


def prompt_tokens_of(specs: Sequence[RowSpec], *, held: int, longest_first: bool = False) -> int:
    """How many tokens of prompts are computed if the engine holds so many of the rows at once."""
    scheduler = Scheduler(WIDTH, 64, ROOM, longest_first=longest_first)
    todo = list(specs)
    num_computed = num_ended = 0
    while num_ended < len(specs):
        while todo and len(specs) - len(todo) - num_ended < held:
            scheduler.add(RowGroup(Row(todo.pop(0), lambda ids: "")))
        plan, _ = scheduler.schedule(0.0)
        due = [*plan.decoding, *(chunk.row for chunk in plan.prefill if chunk.is_last)]
        num_computed += plan.num_prefilled
        num_ended += len(scheduler.commit(due, [1] * len(due), 0.0))
    return num_computed


def optimum(specs: Sequence[RowSpec], num_prefixes: int = NUM_PREFIXES) -> int:
    return sum(len(spec.prompt_ids) - PREFIX_TOKENS for spec in specs) + num_prefixes * PREFIX_TOKENS


@pytest.mark.parametrize("longest_first", [False, True], ids=["first come", "longest first"])
def test_each_prefix_is_computed_once_though_there_is_room_for_two(longest_first: bool) -> None:
    specs = interleaved(60)

    assert prompt_tokens_of(specs, held=60, longest_first=longest_first) == optimum(specs)


def test_prefixes_are_seldom_computed_again_where_few_rows_are_held() -> None:
    specs = interleaved(120)

    num_computed = prompt_tokens_of(specs, held=6 * WIDTH)

    assert num_computed < optimum(specs) + 2 * NUM_PREFIXES * PREFIX_TOKENS
    assert sum(len(spec.prompt_ids) for spec in specs) > 3 * num_computed


def test_nobody_is_held_back_for_longer_than_a_prefix_is_worth() -> None:
    """The rows that use the two prefixes may generate more tokens than a third one has: it is computed for each."""
    specs = [
        row_spec(row_id=spec.row_id.request_id, prompt_ids=spec.prompt_ids, max_tokens=2 * PREFIX_TOKENS)
        for spec in interleaved(2 * WIDTH, prefixes=4)
    ]
    scheduler = Scheduler(2 * WIDTH, None, ROOM)
    for spec in specs:
        scheduler.add(RowGroup(Row(spec, lambda ids: "")))

    plan, _ = scheduler.schedule(0.0)

    assert len(plan.rows) == 2 * WIDTH


@pytest.mark.parametrize(("num_tokens", "num_admitted"), [(60, 4), (100, 8)], ids=["soon", "late"])
def test_many_rows_do_not_stay_empty_for_a_prefix_that_only_two_share(num_tokens: int, num_admitted: int) -> None:
    """Four free rows cost as much as the two rows that would fill them save, after half as many steps as a prefix has
    tokens."""
    specs = [replace(spec, max_tokens=num_tokens) for spec in interleaved(8, prefixes=4)]
    scheduler = Scheduler(8, None, ROOM)
    for spec in specs:
        scheduler.add(RowGroup(Row(spec, lambda ids: "")))

    plan, _ = scheduler.schedule(0.0)

    assert len(plan.rows) == num_admitted


def test_the_rows_of_a_request_that_has_begun_are_not_held_back() -> None:
    scheduler = Scheduler(3 * WIDTH, 64, ROOM)
    some = interleaved(3 * WIDTH, prefixes=3, limit=1)
    several = [replace(some[2], row_id=row_named(name)) for name in ("2", "2#1")]
    for spec in (*some[:2], *several, *some[3:]):
        scheduler.add(RowGroup(Row(spec, lambda ids: "")))

    order = []
    while scheduler.num_running or scheduler.num_waiting:
        plan, _ = scheduler.schedule(0.0)
        order += [chunk.row.spec.row_id for chunk in plan.prefill if chunk.start <= PREFIX_TOKENS and chunk.is_last]
        due = [*plan.decoding, *(chunk.row for chunk in plan.prefill if chunk.is_last)]
        scheduler.commit(due, [1] * len(due), 0.0)

    assert order.index(row_named("2#1")) == order.index(row_named("2")) + 1


def test_who_shares_nothing_goes_ahead_of_those_that_are_held_back() -> None:
    scheduler = Scheduler(WIDTH, None, ROOM)
    loner = row_spec(row_id="loner", prompt_ids=(99,) * 5)
    for spec in (*interleaved(8, prefixes=4, limit=1), loner):
        scheduler.add(RowGroup(Row(spec, lambda ids: "")))

    plan, _ = scheduler.schedule(0.0)

    # Two of each of two prefixes fill the batch.
    assert sorted(row.spec.prompt_ids[0] for row in plan.rows) == [0, 0, 1, 1]
    scheduler.commit(plan.rows[:1], [1], 0.0)
    plan, _ = scheduler.schedule(0.0)
    assert [chunk.row.spec.row_id.request_id for chunk in plan.prefill] == ["loner"]
