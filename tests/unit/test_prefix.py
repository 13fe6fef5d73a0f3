"""Which prompts share a prefix, and how long it is kept."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxq_worker.engine.kvcache import prefix as prefix_module
from mlxq_worker.engine.kvcache.prefix import BLOCK, MIN_TOKENS, Prefix, PrefixTable

SYSTEM = tuple(range(1000, 1000 + 4 * BLOCK))


def table_of(*prompts: tuple[int, ...], max_tokens: int = 10_000) -> PrefixTable:
    table = PrefixTable(max_tokens)
    for prompt in prompts:
        table.expect(prompt)
    return table


def acquired(table: PrefixTable, prompt: tuple[int, ...]) -> Prefix:
    prefix = table.acquire(prompt)
    assert prefix is not None
    return prefix


def test_two_prompts_that_begin_alike_share_their_whole_blocks() -> None:
    first, second = (*SYSTEM, *range(50)), (*SYSTEM, *range(50, 100))
    table = table_of(first, second)

    prefix = acquired(table, first)

    assert prefix.token_ids == SYSTEM
    assert acquired(table, second) is prefix
    assert repr(prefix) == f"Prefix(0/{len(SYSTEM)} tokens, 2 users)"


def test_a_prompt_shares_nothing_with_itself_with_others_or_below_the_minimum() -> None:
    alone, other = SYSTEM, tuple(range(200))
    short = SYSTEM[: MIN_TOKENS - 1]
    table = table_of(alone, other, (*short, 1), (*short, 2), (*short, 3))

    assert table.acquire(alone) is None
    assert table.acquire(other) is None
    assert table.acquire((*short, 1)) is None


def test_equal_prompts_keep_a_token_of_their_own_to_decode_from() -> None:
    prefix = acquired(table_of(SYSTEM, SYSTEM), SYSTEM)

    assert prefix.token_ids == SYSTEM[:-1]


def test_equal_prompts_share_what_is_behind_their_whole_blocks_too() -> None:
    prompt = tuple(range(400))

    assert acquired(table_of(prompt, prompt), prompt).token_ids == prompt[:-1]


def test_what_some_prompts_share_beyond_what_more_do_is_based_on_it() -> None:
    twice, other = (*SYSTEM, *range(MIN_TOKENS + 1)), (*SYSTEM, 7)
    table = table_of(twice, twice, other)

    prefix = acquired(table, twice)

    assert prefix.token_ids == twice[:-1]
    assert prefix.base is acquired(table, other)
    assert prefix.num_prefilled == len(SYSTEM)
    assert prefix.unfilled() == [prefix.base, prefix]


def test_prompts_that_share_little_beyond_what_more_do_keep_to_that() -> None:
    twice, other = (*SYSTEM, *range(MIN_TOKENS)), (*SYSTEM, 7)
    table = table_of(twice, twice, other)

    assert acquired(table, twice).token_ids == SYSTEM


def test_a_base_is_kept_while_something_is_based_on_it() -> None:
    twice, other = (*SYSTEM, *range(MIN_TOKENS + 1)), (*SYSTEM, 7)
    table = table_of(twice, twice, other, max_tokens=2 * len(SYSTEM) + MIN_TOKENS)
    prefix = acquired(table, twice)
    table.release(prefix)
    newcomer = tuple(range(5000, 5000 + 2 * len(SYSTEM)))
    for _ in range(2):
        table.expect(newcomer)
    acquired(table, newcomer)

    assert table.take_evicted() == (prefix,)


def test_a_prefix_outlives_its_rows_for_those_that_come_later() -> None:
    prompts = [(*SYSTEM, index) for index in range(3)]
    table = table_of(*prompts[:2])
    prefix = acquired(table, prompts[0])
    table.release(prefix)
    for prompt in prompts[:2]:
        table.forget(prompt)

    table.expect(prompts[2])

    assert table.acquire(prompts[2]) is prefix


def test_of_unused_prefixes_the_least_recently_used_go_first_and_used_ones_stay() -> None:
    prompts = [tuple(range(start, start + MIN_TOKENS + 1)) for start in (0, 1000, 2000)]
    table = table_of(*prompts, *prompts, max_tokens=2 * MIN_TOKENS)
    oldest, used = acquired(table, prompts[0]), acquired(table, prompts[1])
    table.release(oldest)

    newest = acquired(table, prompts[2])

    assert table.take_evicted() == (oldest,)
    assert table.take_evicted() == ()
    assert {used, newest} == {table.acquire(prompts[1]), table.acquire(prompts[2])}


def test_without_room_beside_the_used_prefixes_nothing_more_is_shared() -> None:
    prompts = [tuple(range(start, start + MIN_TOKENS + 1)) for start in (0, 1000)]
    table = table_of(*prompts, *prompts, max_tokens=2 * MIN_TOKENS - 1)

    assert table.acquire(prompts[0]) is not None
    assert table.acquire(prompts[1]) is None


def test_where_there_is_room_for_a_part_that_part_is_shared() -> None:
    prompt = tuple(range(20 * BLOCK))

    assert acquired(table_of(prompt, prompt, max_tokens=5 * BLOCK + 3), prompt).token_ids == prompt[: 5 * BLOCK]


def test_each_turn_of_a_conversation_goes_on_from_the_one_before_however_many_there_are() -> None:
    num_turns = 520
    turns = [tuple(range(turn * MIN_TOKENS + 1)) for turn in range(1, num_turns + 1)]
    table = PrefixTable(sum(map(len, turns)))
    for turn in (*turns, turns[-1]):
        table.expect(turn)

    prefix = acquired(table, turns[-1])

    assert [len(each) for each in prefix.unfilled()] == [MIN_TOKENS * turn for turn in range(1, num_turns + 1)]


def test_long_prompts_are_looked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up: list[int] = []

    class Looked(Counter[int]):
        def __missing__(self, key: int) -> int:
            looked_up.append(key)
            return 0

        def __getitem__(self, key: int) -> int:
            looked_up.append(key)
            return super().__getitem__(key)

    monkeypatch.setattr(prefix_module, "Counter", Looked)
    prompt = tuple(range(3000 * BLOCK))
    for room in (0, MIN_TOKENS, 100 * BLOCK, 2 * len(prompt)):
        table = table_of(prompt, prompt, max_tokens=room)
        looked_up.clear()
        table.acquire(prompt)

        assert len(looked_up) <= 2 * 3000


@given(
    prompts=st.lists(
        st.builds(
            lambda num_shared, own: (*SYSTEM[:num_shared], *own),
            st.integers(0, len(SYSTEM)),
            st.lists(st.integers(0, 3), min_size=1, max_size=80).map(tuple),
        ),
        min_size=1,
        max_size=8,
    ),
    max_tokens=st.integers(0, 300),
)
def test_a_prefix_is_always_a_true_one_and_the_table_ends_empty(
    prompts: list[tuple[int, ...]], max_tokens: int
) -> None:
    table = table_of(*prompts, max_tokens=max_tokens)

    held = [(prompt, prefix) for prompt in prompts if (prefix := table.acquire(prompt))]

    for prompt, prefix in held:
        assert prompt[: len(prefix)] == prefix.token_ids
        assert len(prefix) < len(prompt)
        assert sum(other[: len(prefix)] == prefix.token_ids for other in prompts) > 1
    for _, prefix in held:
        table.release(prefix)
    for prompt in prompts:
        table.forget(prompt)
    table.take_evicted()
    assert table.num_tokens <= max_tokens
    assert table.acquire(prompts[0]) is None or table.num_tokens > 0
