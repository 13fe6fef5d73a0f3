"""States of rows lie by the rows' numbers, and a prefix's where it ends."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ArraysCache

from mlxq_worker.engine.kvcache.prefix import Prefix
from mlxq_worker.engine.kvcache.slot_allocator import Slot
from mlxq_worker.engine.kvcache.states import State, States
from mlxq_worker.engine.plan import PrefixChunk
from mlxq_worker.engine.runners.state_cache import StateCache
from mlxq_worker.engine.runners.step.groups import by_state
from mlxq_worker.engine.runners.step.layout import Layout
from mlxq_worker.engine.runners.step.spans import Span


def state(*rows: float) -> State:
    """Of rows that are told apart by a number; the second array isn't set."""
    return mx.array(rows)[:, None] * mx.ones((1, 2)), None


def rows_of(what: State) -> list[float]:
    first, second = what
    assert second is None
    assert first is not None
    return [row[0] for row in first.tolist()]


def indices(*rows: int) -> mx.array:
    return mx.array(rows, dtype=mx.uint32)


def decoding(*rows: int) -> list[Span]:
    """A token of each of these rows."""
    return [Span(Slot(0, row), 5, 6, row=row) for row in rows]


def test_a_row_keeps_its_state_while_others_come_and_go() -> None:
    states = States()
    states.write(indices(1, 0), 2, state(10, 20))

    states.write(indices(2), 3, state(30))
    assert rows_of(states.first(3)) == [20, 10, 30]
    states.write(indices(0), 2, state(40))

    assert rows_of(states.read(indices(1, 0))) == [10, 40]


def test_rows_behind_those_that_are_replaced_keep_their_states_as_long_as_they_are_there() -> None:
    states = States()
    states.write(indices(0, 1, 2), 3, state(1, 2, 3))

    states.replace_first(state(4, 5), 3)
    assert rows_of(states.first(3)) == [4, 5, 3]
    states.replace_first(state(6), 2)

    assert rows_of(states.first(3)) == [6, 5]


def test_rows_are_copied_over_others_all_at_once() -> None:
    states = States()
    states.write(indices(0, 1, 2), 3, state(1, 2, 3))

    states.copy([(0, 1), (0, 3)])

    assert rows_of(states.first(4)) == [1, 1, 3, 1]


def test_a_prefix_begins_with_the_state_of_the_one_that_it_goes_on_from() -> None:
    states, base = States(), Prefix((1, 2))
    longer = Prefix((1, 2, 3), base)
    states.write_prefix(base, state(5))

    before = states.read_prefix(longer)
    states.write_prefix(longer, state(6))
    states.evict(base)

    assert before is not None
    assert rows_of(before) == [5]
    assert [rows_of((array, None)) for array in states.arrays] == [[6]]


def test_the_state_of_a_prefix_that_is_alone_in_a_step_is_no_rows_state() -> None:
    # given a row, and a step without it
    prefix, cache = Prefix((1, 2, 3)), StateCache(2)
    cache.states.write(indices(0), 1, state(10))
    layout = Layout([], [], [PrefixChunk(prefix, 0, 3)])
    cache.begin_step(layout)
    [group] = by_state(layout).groups

    # when
    view = cache.view(group)
    view.cache = list(state(20))
    cache.keep(group, view)

    # then
    kept = cache.states.read_prefix(prefix)
    assert kept is not None
    assert rows_of(kept) == [20]
    assert rows_of(cache.states.first(1)) == [10]


def _add_one(handed: ArraysCache) -> None:
    handed[0] = handed[0] + 1


def _replace_all(handed: ArraysCache) -> None:
    handed.cache = list(state(30, 40))


@pytest.mark.parametrize(("module", "left"), [(_add_one, [11, 21]), (_replace_all, [30, 40])])
def test_all_rows_states_are_handed_over_at_once_where_a_step_has_a_token_of_each(
    module: Callable[[ArraysCache], None], left: list[float]
) -> None:
    # given
    cache = StateCache(2)
    cache.states.write(indices(0, 1), 2, state(10, 20))
    cache.begin_step(Layout(decoding(0, 1)))

    # when
    handed = cache.handed()
    assert isinstance(handed, ArraysCache)
    module(handed)
    cache.end_step()

    # then
    assert rows_of(cache.states.first(2)) == left


@pytest.mark.parametrize(
    "layout",
    [
        lambda: Layout(decoding(1)),
        lambda: Layout(decoding(0), resting=[1]),
        lambda: Layout(decoding(0), [Span(Slot(0, 1), 0, 4, row=1)]),
        lambda: Layout([], [], [PrefixChunk(Prefix((1, 2, 3)), 0, 1)]),
    ],
    ids=["a hole", "a row that rests", "a prompt", "one token of a prefix"],
)
def test_other_steps_are_taken_apart(layout: Callable[[], Layout]) -> None:
    # given
    cache = StateCache(2)
    cache.states.write(indices(0, 1), 2, state(10, 20))
    cache.begin_step(layout())

    # when
    handed = cache.handed()
    cache.end_step()

    # then
    assert handed is cache
    assert rows_of(cache.states.first(2)) == [10, 20]


def test_a_step_that_failed_leaves_nothing_to_be_kept() -> None:
    # given
    cache = StateCache(2)
    cache.states.write(indices(0, 1), 2, state(10, 20))
    cache.begin_step(Layout(decoding(0, 1)))
    cache.handed()  # and no end

    # when
    cache.states.write(indices(0, 1), 2, state(30, 40))
    cache.begin_step(Layout(decoding(0), resting=[1]))
    cache.handed()
    cache.end_step()

    # then
    assert rows_of(cache.states.first(2)) == [30, 40]
