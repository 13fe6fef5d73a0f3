"""The tests' own judgement of what rounding may do: it spares what is clear and notices what is not."""

from __future__ import annotations

import mlx.core as mx
import pytest
from tests.support.rounding import assert_steady, disturbed, logprobs_of, smallest_gap, unit
from tests.support.tiny_models import CONFIGS, build

PROMPT = tuple(range(3, 40))


def test_a_choice_between_two_equal_tokens_is_a_near_tie() -> None:
    # given a model for which each even token is as good as the odd one that follows it
    model = build("llama")
    model.lm_head.weight = mx.repeat(model.lm_head.weight[::2], 2, axis=0)

    def best() -> list[int]:
        return [int(token_id) for token_id in mx.argmax(model(mx.array([PROMPT]))[0], axis=-1).tolist()]

    with pytest.raises(AssertionError, match="near-tie"):
        assert_steady(model, best)
    assert smallest_gap(model, (PROMPT[:-1], [best()[-2]])) < 2


@pytest.mark.parametrize("architecture", CONFIGS)
def test_what_rounding_may_do_is_little_against_a_wrong_computation(architecture: str) -> None:
    model, other = build(architecture), build(architecture, seed=1)

    logprobs, off = logprobs_of(model, PROMPT)

    assert off < 0.01 * abs(logprobs - logprobs_of(other, PROMPT)[0]).mean()


def test_a_model_is_after_a_disturbance_what_it_was_before() -> None:
    model = build("llama")
    before = model(mx.array([PROMPT]))

    with disturbed(model, 0):
        within = model(mx.array([PROMPT]))

    assert mx.array_equal(model(mx.array([PROMPT])), before)
    assert not mx.array_equal(within, before)


def test_units_are_those_of_the_dtypes() -> None:
    assert [unit(dtype) for dtype in (mx.float32, mx.float16, mx.bfloat16)] == [
        mx.finfo(dtype).eps / 2 for dtype in (mx.float32, mx.float16, mx.bfloat16)
    ]
