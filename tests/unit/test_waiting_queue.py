"""Who is next."""

from __future__ import annotations

import random
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st
from tests.support.row_specs import name_of, row_spec

from mlxq_worker.engine.rows.group import RowGroup
from mlxq_worker.engine.rows.row import Row
from mlxq_worker.engine.scheduling.waiting_queue import MAX_OVERTAKEN, WaitingQueue

NONE: Mapping[int, int] = {}

Request = tuple[int, int]
"""The length of a prompt, and the key of what it begins with."""


def group(row_id: str, length: int = 1) -> RowGroup:
    return RowGroup(Row(row_spec(row_id=row_id, prompt_ids=(1,) * length), lambda ids: ""))


def beginnings(*keys: int) -> dict[int, int]:
    """Of a prompt that begins with these, each 64 tokens longer than the one before."""
    return {key: 64 * number for number, key in enumerate(keys, start=1)}


def queue_of(lengths: dict[str, int], *, longest_first: bool) -> WaitingQueue:
    queue = WaitingQueue(longest_first=longest_first)
    for row_id, length in lengths.items():
        queue.add(group(row_id, length))
    return queue


def admitted(queue: WaitingQueue, prefixes: Mapping[int, int] = NONE, num_spare_tokens: int = 0) -> str:
    chosen = queue.choose(prefixes, num_spare_tokens)
    queue.admit(chosen)
    return name_of(chosen.spec.row_id)


def admitted_from(queue: WaitingQueue, prefixes: Mapping[int, int] = NONE, num_spare_tokens: int = 0) -> list[str]:
    order = []
    while queue:
        order.append(admitted(queue, prefixes, num_spare_tokens))
    return order


def test_rows_go_in_the_order_in_which_they_came() -> None:
    assert admitted_from(queue_of({"a": 2, "b": 3, "c": 1}, longest_first=False)) == ["a", "b", "c"]


def test_the_longest_prompt_goes_first_and_of_equal_ones_the_first_that_came() -> None:
    assert admitted_from(queue_of({"a": 2, "b": 3, "c": 1, "d": 3}, longest_first=True)) == ["b", "d", "a", "c"]


def test_prompts_that_begin_with_a_prefix_that_is_there_go_first_the_longest_prefix_before_others() -> None:
    queue = WaitingQueue()
    keys = {"other": (9,), "short": (1,), "long": (1, 2), "none": (), "as short": (1, 3)}
    for row_id, its_keys in keys.items():
        queue.add(group(row_id), beginnings(*its_keys))

    assert admitted_from(queue, prefixes={2: 128, 7: 96, 1: 64}) == ["long", "short", "as short", "other", "none"]


def test_prompts_that_have_the_most_in_common_go_next_to_each_other() -> None:
    queue = WaitingQueue()
    keys = {"none": (), "pair": (1, 2), "pair too": (1, 2), "one": (1,), "three": (7,), "four": (7,), "five": (7,)}
    for row_id, its_keys in keys.items():
        queue.add(group(row_id), beginnings(*its_keys))

    order = []
    while queue:
        chosen = queue.choose({1: 64}, num_spare_tokens=128)
        order.append(name_of(chosen.spec.row_id))
        queue.admit(chosen)

    # What begins with the prefix that is there; in it first those for which a longer one is worth making.
    assert order == ["pair", "pair too", "one", "three", "four", "none", "five"]


def test_who_has_nothing_in_common_with_others_can_be_asked_for() -> None:
    queue = WaitingQueue()
    for row_id, key in (("a", 1), ("b", 1), ("c", 2)):
        queue.add(group(row_id), beginnings(key))

    alone = queue.choose_alone()

    assert alone is not None
    assert name_of(alone.spec.row_id) == "c"
    assert [queue.shared_with_others(each) for each in queue] == [(64, 2), (64, 2), (0, 1)]
    queue.discard(alone)
    assert queue.choose_alone() is None


def test_the_longest_go_first_among_those_that_begin_with_the_same_prefix() -> None:
    queue = WaitingQueue(longest_first=True)
    for row_id, length, keys in (("a", 5, ()), ("b", 2, (1,)), ("c", 3, (1,)), ("d", 9, ())):
        queue.add(group(row_id, length), beginnings(*keys))

    assert admitted_from(queue, prefixes={1: 64}) == ["c", "b", "d", "a"]


def test_nobody_enters_between_the_rows_of_a_request() -> None:
    queue = WaitingQueue(longest_first=True)
    for row_id, length in (("a", 3), ("b", 2), ("b#1", 2), ("b#2", 2)):
        queue.add(group(row_id, length), beginnings(1) if row_id == "a" else NONE)

    first = [admitted(queue), admitted(queue)]
    has_begun = [queue.has_begun(each) for each in queue]
    queue.add(group("c", 9), beginnings(1))
    rest = admitted_from(queue, prefixes={1: 64})

    assert (first, has_begun) == (["a", "b"], [True, True])
    assert rest == ["b#1", "b#2", "c"]


def test_a_request_whose_begun_rows_were_all_there_was_holds_nobody_up() -> None:
    queue = queue_of({"a": 1, "a#1": 1, "b": 1}, longest_first=False)
    admitted(queue)

    queue.discard(next(each for each in queue if name_of(each.spec.row_id) == "a#1"))

    assert admitted_from(queue) == ["b"]


def test_a_short_prompt_waits_for_no_more_than_so_many_longer_ones() -> None:
    queue = queue_of({"short": 1} | {f"long {index}": 2 for index in range(2 * MAX_OVERTAKEN)}, longest_first=True)

    assert admitted_from(queue).index("short") == MAX_OVERTAKEN


@given(
    requests=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), max_size=60),
    max_overtaken=st.integers(0, 8),
    longest_first=st.booleans(),
    prefixes=st.lists(st.integers(0, 3), unique=True),
    seed=st.randoms(use_true_random=False),
)
def test_no_request_is_overtaken_by_more_than_so_many_later_ones(
    requests: list[Request], max_overtaken: int, longest_first: bool, prefixes: list[int], seed: random.Random
) -> None:
    """Requests come and go in any order, and some are withdrawn."""
    queue = WaitingQueue(longest_first=longest_first, max_overtaken=max_overtaken)
    todo = [(str(number), length, key) for number, (length, key) in enumerate(requests)]
    order: list[int] = []

    while todo or queue:
        for row_id, length, key in todo[: seed.randrange(12)]:
            queue.add(group(row_id, length), beginnings(key) if key else NONE)
            todo.pop(0)
        for _ in range(min(seed.randrange(12), len(queue))):
            order.append(int(admitted(queue, dict.fromkeys(prefixes, 64), 64 * seed.randrange(2))))
        alone = queue.choose_alone() if queue else None
        if alone and seed.random() < 0.2:
            queue.admit(alone)
            order.append(int(name_of(alone.spec.row_id)))
        if queue and seed.random() < 0.2:
            queue.discard(seed.choice(list(queue)))

    went = set(order)
    assert len(went) == len(order)
    for position, number in enumerate(order):
        assert sum(other > number for other in order[:position]) <= max_overtaken


def test_a_row_that_waits_no_longer_is_gone() -> None:
    queue = queue_of({"a": 1, "b": 1}, longest_first=False)

    queue.discard(queue.choose())

    assert [name_of(each.spec.row_id) for each in queue] == ["b"]
    assert queue.num_rows == 1
