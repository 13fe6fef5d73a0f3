"""A row whose logits aren't numbers, or that nothing may follow, ends by itself; nobody else's tokens change."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, product
from random import Random
from typing import Any

import mlx.core as mx
import pytest
from tests.support.engine_runs import decode, run
from tests.support.row_specs import name_of, row_spec
from tests.support.tiny_models import VOCAB_SIZE, build
from tests.support.tried_models import engine_over, model_of

from mlxq.contract import StopDetails
from mlxq_worker.engine.api import RowSpec
from mlxq_worker.engine.rows.row import Row
from mlxq_worker.engine.sampling.batch_sampler import BatchSampler
from mlxq_worker.engine.sampling.token_sampler import best_ids

EVERY_WAY = pytest.mark.parametrize(
    ("architecture", "packed"),
    [("mixtral", True), *product(("llama", "gemma3", "mamba2"), (True, False))],
)


def sound_specs() -> list[RowSpec]:
    """Rows of all lengths; the later ones begin alike."""
    random = Random(3)
    shared = random.choices(range(VOCAB_SIZE), k=70)
    prompts = [random.choices(range(VOCAB_SIZE), k=length) for length in (1, 9, 40, 3)]
    prompts += [[*shared, *random.choices(range(VOCAB_SIZE), k=length)] for length in (1, 4, 20)]
    return [
        row_spec(row_id=str(index), prompt_ids=tuple(prompt), max_tokens=3 + index, seed=index, temperature=0.5)
        for index, prompt in enumerate(prompts)
    ]


def unused_id(specs: Iterable[RowSpec], outputs: Iterable[tuple[int, ...]]) -> int:
    """An id that no row ever sees."""
    used = {*chain(*outputs, *(spec.prompt_ids for spec in specs))}
    return next(token_id for token_id in range(VOCAB_SIZE) if token_id not in used)


def poison(model: Any, token_id: int) -> None:
    """Make whatever follows this id not a number."""
    embedding = next(module for name, module in model.named_modules() if name.endswith(("embed_tokens", "embeddings")))
    embedding.weight[token_id] = mx.nan


@EVERY_WAY
@pytest.mark.parametrize("pipelined", [True, False], ids=["pipelined", "plain"])
def test_rows_that_compute_no_numbers_end_alone(architecture: str, packed: bool, pipelined: bool) -> None:
    model, specs = build(architecture), sound_specs()
    options: dict[str, Any] = {"max_num_batched_tokens": 16, "packed": packed, "pipelined": pipelined}
    alone = run(engine_over(model, max_num_seqs=1, max_prefix_bytes=0, **options), specs).tokens
    culprit_id = unused_id(specs, alone.values())
    poison(model, culprit_id)
    culprits = [
        row_spec(row_id=f"culprit {name_of(spec.row_id)}", prompt_ids=(*spec.prompt_ids, culprit_id, 5), num_logprobs=2)
        for spec in specs
    ]
    steered = row_spec(row_id="steered", logit_bias={culprit_id: 1000.0}, num_logprobs=0)
    company = [*chain(*zip(culprits, specs, strict=True)), steered]

    for one_per_step in (True, False):
        outcome = run(engine_over(model, max_num_seqs=4, **options), company, one_per_step=one_per_step)

        assert {row_id: outcome.tokens[row_id] for row_id in alone} == alone
        for culprit in culprits:
            result = outcome.results[name_of(culprit.row_id)]
            assert result.stop_details == StopDetails(type="error")
            assert (result.error_code, result.token_ids, result.logprobs) == ("nan_logits", (), ())
        on_the_way = outcome.results["steered"]
        assert on_the_way.stop_details == StopDetails(type="error", token_index=0)
        assert (on_the_way.token_ids, on_the_way.text) == ((culprit_id,), decode((culprit_id,)))
        assert [scores.token_id for scores in on_the_way.logprobs or ()] == [culprit_id]


@EVERY_WAY
@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def test_a_row_that_nothing_may_follow_keeps_what_it_has(architecture: str, packed: bool, temperature: float) -> None:
    def stuck(row_id: str, **changes: Any) -> RowSpec:
        return row_spec(row_id=row_id, temperature=temperature, allowed_token_ids=frozenset({5}), **changes)

    specs = sound_specs()
    engine = engine_over(model_of(architecture), max_num_seqs=8, packed=packed)
    expected = run(engine, specs).tokens

    outcome = run(engine, [stuck("at once", bad_words=((5,),)), *specs, stuck("later", bad_words=((5, 5, 5),))])

    assert {name_of(spec.row_id): outcome.tokens[name_of(spec.row_id)] for spec in specs} == expected
    at_once, later = outcome.results["at once"], outcome.results["later"]
    assert at_once.stop_details == StopDetails(type="error")
    assert later.stop_details == StopDetails(type="error", token_index=1)
    assert (at_once.token_ids, later.token_ids, later.text) == ((), (5, 5), decode((5, 5)))
    assert at_once.error_code == later.error_code == "no_token_allowed"
    assert all(outcome.results[name_of(spec.row_id)].error_code is None for spec in specs)
    assert sum(report.rows_useful for report in outcome.reports) == sum(map(len, outcome.tokens.values()))


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def test_a_logit_that_overflowed_ends_its_row_alone(temperature: float) -> None:
    rows = tuple(Row(row_spec(row_id=str(index), temperature=temperature), decode) for index in range(3))
    logits = mx.zeros((3, VOCAB_SIZE), dtype=mx.float16)
    logits[1, 7] = 1e6

    assert BatchSampler().sample(rows, logits).read().errors == {rows[1]: "nan_logits"}


@pytest.mark.parametrize("num_ids", [1, 7, 64, 128, 1000, 1280, 50257])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])
def test_the_best_id_is_the_first_of_equals_and_no_number_hides(num_ids: int, dtype: mx.Dtype) -> None:
    logits = mx.random.normal((4, num_ids), key=mx.random.key(num_ids)).astype(dtype)
    logits[1] = mx.floor(logits[1])  # many equals

    best, peaks = best_ids(logits)

    assert mx.array_equal(best, mx.argmax(logits, axis=-1))
    assert mx.array_equal(peaks, logits.max(axis=-1))
    for index in {0, num_ids // 3, num_ids - 1}:
        poisoned = mx.array(logits)
        poisoned[2, index] = mx.nan
        assert mx.isnan(best_ids(poisoned)[1]).tolist() == [False, False, True, False]
