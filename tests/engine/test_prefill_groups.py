"""Which prompts are padded together for prefill."""

from __future__ import annotations

from itertools import chain

from hypothesis import given
from hypothesis import strategies as st
from tests.support.countdown import decode
from tests.support.row_specs import row_spec

from mlxq_worker.engine.rows.row import Row
from mlxq_worker.engine.runners.padded import prefill_groups

CHUNK = 100


def groups_of(lengths: list[int]) -> list[list[int]]:
    """The prompts' lengths, grouped."""
    rows = [Row(row_spec(prompt_ids=(0,) * length), decode) for length in lengths]
    return [[len(row.spec.prompt_ids) for row in group] for group in prefill_groups(rows, CHUNK)]


@given(lengths=st.lists(st.integers(1, 200), max_size=20))
def test_every_prompt_is_in_one_group(lengths: list[int]) -> None:
    assert sorted(chain(*groups_of(lengths))) == sorted(lengths)


@given(lengths=st.lists(st.integers(1, 200), max_size=20))
def test_at_most_a_quarter_of_a_group_is_padding(lengths: list[int]) -> None:
    for group in groups_of(lengths):
        assert sum(group) >= 0.75 * max(group) * len(group)


@given(lengths=st.lists(st.integers(1, 200), max_size=20))
def test_prompts_that_take_several_chunks_or_one_position_are_not_padded(lengths: list[int]) -> None:
    for group in groups_of(lengths):
        assert 2 <= max(group) - 1 <= CHUNK or len(set(group)) == 1


def test_prompts_of_similar_length_share_one_prefill() -> None:
    assert groups_of([100, 80, 90, 10]) == [[10], [80, 90, 100]]


def test_long_prompts_of_one_length_share_one_prefill() -> None:
    assert groups_of([150, 151, 150]) == [[150, 150], [151]]
