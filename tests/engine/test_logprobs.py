"""Log probabilities of answers and prompts are those of mlx-lm's model, run by itself over the whole sequence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from random import Random
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tests.support.engine_runs import decode, run
from tests.support.processed_rows import any_parameters
from tests.support.rounding import logprobs_of
from tests.support.row_specs import name_of, row_named, row_spec
from tests.support.tiny_models import VOCAB_SIZE, build
from tests.support.tried_models import engine_over, model_of

from mlxq_worker.engine.api import RowSpec, TokenScores
from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.engine.rows.row import Row
from mlxq_worker.engine.sampling.batch_sampler import BatchSampler
from mlxq_worker.engine.sampling.logprobs import LEAST_LOGPROB, Scores


def random_specs() -> list[RowSpec]:
    """Rows that want scores of all kinds, among them some that want none; half of the prompts begin alike."""
    random = Random(4)
    shared = random.choices(range(VOCAB_SIZE), k=70)
    specs = []
    for index in range(14):
        prompt = random.choices(range(VOCAB_SIZE), k=1 + 3 * index)
        specs.append(
            row_spec(
                row_id=str(index),
                prompt_ids=tuple([*shared, *prompt] if index % 2 else prompt),
                max_tokens=3 + index % 5,
                seed=index,
                temperature=0.7 * (index % 3),
                num_logprobs=(None, 0, 3, 20)[index % 4],
                num_prompt_logprobs=(None, 5, 0)[index % 3],
                logprob_token_ids=tuple(random.sample(range(VOCAB_SIZE), k=index % 4)),
                **(any_parameters(random) if index % 4 == 3 else {}),
            )
        )
    return specs


def assert_scores(scores: TokenScores, logprobs: Any, off: float, token_id: int, num_top: int) -> None:
    """`logprobs` (V,) are the right ones, but for rounding, which may move each by `off`. Of two that are no further
    apart than it moves both, either may come first."""
    assert scores.token_id == token_id
    assert scores.logprob == pytest.approx(float(logprobs[token_id]), abs=off)
    surely_ahead, perhaps_ahead = (int((logprobs > logprobs[token_id] + by).sum()) for by in (2 * off, -2 * off))
    assert 1 + surely_ahead <= scores.rank <= max(1, perhaps_ahead)
    top_ids = [top_id for top_id, _ in scores.top]
    assert len(set(top_ids)) == len(top_ids) == num_top
    assert [value for _, value in scores.top] == pytest.approx(logprobs[top_ids].tolist(), abs=off)
    assert logprobs[top_ids].tolist() == pytest.approx(np.sort(logprobs)[::-1][:num_top].tolist(), abs=2 * off)


def assert_all_scores(
    found: Sequence[TokenScores | None] | None,
    logprobs: Any,
    off: float,
    token_ids: Sequence[int],
    num_top: int | None,
) -> None:
    if num_top is None:
        assert found is None
        return
    assert found is not None
    for scores, own, token_id in zip(found, logprobs, token_ids, strict=True):
        assert scores is not None
        assert_scores(scores, own, off, token_id, num_top)


@cache
def by_itself(architecture: str, sequence: tuple[int, ...]) -> tuple[Any, float]:
    return logprobs_of(model_of(architecture), sequence)


@pytest.mark.parametrize(("architecture", "packed"), list(product(("llama", "gemma3", "mamba2"), (True, False))))
@pytest.mark.parametrize("pipelined", [True, False], ids=["pipelined", "plain"])
def test_scores_are_those_of_the_model_run_by_itself(architecture: str, packed: bool, pipelined: bool) -> None:
    engine = engine_over(
        model_of(architecture), max_num_seqs=5, max_num_batched_tokens=16, packed=packed, pipelined=pipelined
    )

    results = run(engine, random_specs(), one_per_step=True).results

    for spec in random_specs():
        result, num_prompt = results[name_of(spec.row_id)], len(spec.prompt_ids)
        sequence = (*spec.prompt_ids, *result.token_ids)
        logprobs, off = by_itself(architecture, sequence)
        assert_all_scores(result.logprobs, logprobs[num_prompt - 1 : -1], off, result.token_ids, spec.num_logprobs)
        for scores, own in zip(result.logprobs or (), logprobs[num_prompt - 1 : -1], strict=False):
            assert [token_id for token_id, _ in scores.asked] == list(spec.logprob_token_ids)
            expected = own[list(spec.logprob_token_ids)].tolist()
            assert [value for _, value in scores.asked] == pytest.approx(expected, abs=off)
        in_prompt = result.prompt_logprobs
        assert in_prompt is None or in_prompt[0] is None
        assert_all_scores(
            in_prompt and in_prompt[1:], logprobs[: num_prompt - 1], off, spec.prompt_ids[1:], spec.num_prompt_logprobs
        )


def test_rows_that_want_scores_and_rows_that_do_not_get_the_same_tokens() -> None:
    model = build("llama")
    plain = [row_spec(row_id=str(n), prompt_ids=(n, 2), seed=n, temperature=1.0, max_tokens=8) for n in range(6)]
    asking = [
        row_spec(
            row_id=str(n),
            prompt_ids=(n, 2),
            seed=n,
            temperature=1.0,
            max_tokens=8,
            num_logprobs=n,
            num_prompt_logprobs=n,
        )
        for n in range(6)
    ]

    expected = run(BatchEngine(model, decode, max_num_seqs=6), plain)
    outcome = run(BatchEngine(model, decode, max_num_seqs=6), asking)

    assert outcome.tokens == expected.tokens
    assert all(result.logprobs is None for result in expected.results.values())


def test_a_prompt_that_was_cut_short_has_no_scores() -> None:
    spec = row_spec(prompt_ids=tuple(range(40)), num_prompt_logprobs=1, num_logprobs=1)
    engine = BatchEngine(build("llama"), decode, max_num_seqs=2, max_num_batched_tokens=8)

    outcome = run(engine, [spec], before_step=lambda step: engine.cancel(row_named("row")) if step == 2 else None)

    assert outcome.results["row"].prompt_logprobs is None
    assert outcome.results["row"].logprobs == ()


def test_equals_are_ordered_by_id_and_impossible_ids_have_a_finite_score() -> None:
    logits = mx.array([[0.0, 2.0, -mx.inf, 2.0, 0.0]])

    (scores,) = Scores.of(logits, mx.array([2]), 20).read([5])

    assert [token_id for token_id, _ in scores.top] == [1, 3, 0, 4, 2]
    assert scores.logprob == scores.top[-1][1] == LEAST_LOGPROB
    assert scores.rank == 5


def test_equals_share_a_rank_that_counts_only_what_is_above_them() -> None:
    logits = mx.broadcast_to(mx.array([0.0, 2.0, -mx.inf, 2.0, 0.0]), (5, 5))

    scores = Scores.of(logits, mx.arange(5), 0).read([0] * 5)

    assert [each.rank for each in scores] == [3, 1, 5, 1, 3]


def test_the_alternatives_of_a_row_that_asks_for_fewer_are_the_first_of_one_that_asks_for_more() -> None:
    nums = (1, 2, 5, 20)
    rows = tuple(Row(row_spec(row_id=str(num), num_logprobs=num), decode) for num in nums)
    few_values = mx.floor(2 * mx.random.normal((VOCAB_SIZE,), key=mx.random.key(3)))  # so that there are many equals

    scores = BatchSampler().sample(rows, mx.broadcast_to(few_values, (4, VOCAB_SIZE))).read().scores

    most = scores[rows[-1]].top
    assert [scores[row].top for row in rows] == [most[:num] for num in nums]


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_logits_are_scored_as_what_they_are_in_float32(dtype: mx.Dtype) -> None:
    logits = mx.random.normal((3, VOCAB_SIZE), scale=4.0, key=mx.random.key(1)).astype(dtype)
    token_ids = mx.array([0, 1, 2])

    found, expected = (Scores.of(each, token_ids, 5).read([5] * 3) for each in (logits, logits.astype(mx.float32)))

    assert found == expected
