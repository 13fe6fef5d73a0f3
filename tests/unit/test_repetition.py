"""When a row counts as looping, against vLLM's rule written out plainly."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlxq.contract import RepetitionDetection
from mlxq_worker.engine.rows.repetition import RepetitionWatch

RULES = st.builds(
    lambda shortest, longer, count: RepetitionDetection(
        min_pattern_size=shortest, max_pattern_size=shortest + longer, min_count=count
    ),
    st.integers(0, 4),
    st.integers(0, 4),
    st.integers(2, 4),
)
TOKENS = st.lists(st.integers(0, 2), max_size=40)


def loops(token_ids: Sequence[int], rule: RepetitionDetection) -> bool:
    """The reference: the end of the tokens is one pattern, `min_count` times, for one of the lengths."""
    return any(
        list(token_ids[-length * rule.min_count :]) == list(token_ids[-length:]) * rule.min_count
        for length in range(max(1, rule.min_pattern_size), rule.max_pattern_size + 1)
    )


def watched(token_ids: Sequence[int], rule: RepetitionDetection) -> list[bool]:
    watch = RepetitionWatch(rule)
    return [watch.push(token_ids[: num_tokens + 1]) for num_tokens in range(len(token_ids))]


@given(TOKENS, RULES)
@example([1] * 12, RepetitionDetection(min_pattern_size=3, max_pattern_size=3, min_count=4))
@example([1, 2, 1, 2, 1, 2], RepetitionDetection(min_pattern_size=2, max_pattern_size=5, min_count=3))
def test_a_loop_is_seen_on_the_token_that_completes_it(token_ids: list[int], rule: RepetitionDetection) -> None:
    expected = [loops(token_ids[: num_tokens + 1], rule) for num_tokens in range(len(token_ids))]

    assert watched(token_ids, rule) == expected


@pytest.mark.parametrize(
    ("token_ids", "is_loop"),
    [
        ([1, 2, 3, 1, 2, 3, 1, 2, 3], True),
        ([9, 1, 2, 3, 1, 2, 3, 1, 2, 3], True),
        ([1, 2, 3, 1, 2, 3, 1, 2], False),
        ([1, 2, 3, 1, 2, 3, 1, 2, 4], False),
        ([1, 2, 3, 1, 2, 3], False),
    ],
    ids=["three copies", "after something else", "one token short", "another last token", "two copies"],
)
def test_three_copies_are_three_copies(token_ids: list[int], is_loop: bool) -> None:
    rule = RepetitionDetection(min_pattern_size=1, max_pattern_size=4, min_count=3)

    assert watched(token_ids, rule)[-1] is is_loop
