"""Everything that changes logits against the plain formulas, over random logits and rows that ask for different things;
and whole answers against a model that is run on its own."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from random import Random
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tests.support.engine_runs import decode, run
from tests.support.processed_rows import Residues, any_parameters, processed
from tests.support.rounding import assert_steady, tolerance
from tests.support.row_specs import name_of, row_spec
from tests.support.thorough import sample_of
from tests.support.tiny_models import VOCAB_SIZE
from tests.support.tried_models import engine_over, model_of

from mlxq_worker.engine.api import RowSpec
from mlxq_worker.engine.rows.row import Row
from mlxq_worker.engine.sampling.processors import Processors

ENDS = {token_id: f"<{token_id}>" for token_id in (1, 9, 60)}
LARGEST = 100.0
"""Above every logit here, with the greatest biases and with penalties for as many tokens as there are."""
NAMES = (
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "bad_words",
    "allowed_token_ids",
    "min_tokens",
    "constraint",
)


def all_off_but(only: str | None) -> dict[str, Any]:
    """The defaults of all parameters but this one; of none where it is `None`."""
    return {name: getattr(row_spec(), name) for name in NAMES if name != only} if only else {}


def random_row(random: Random, **changes: Any) -> Row:
    prompt_ids = tuple(random.choices(range(VOCAB_SIZE), k=random.randrange(1, 30)))
    return Row(row_spec(prompt_ids=prompt_ids, end_tokens=ENDS, **{**any_parameters(random), **changes}), decode)


def begin_step(rows: Iterable[Row]) -> None:
    for row in rows:
        row.num_scheduled = len(row.token_ids) + 1


def end_step(rows: Iterable[Row], random: Random) -> None:
    """Give the rows tokens; few different ones, none of which ends them."""
    for row in rows:
        row.commit(random.choice((0, 2, 3, 4, 5, 6, 7)), 0.0)


def assert_processed(processors: Processors, rows: list[Row], logits: mx.array) -> None:
    result = np.array(processors.apply(mx.array(logits)).astype(mx.float32))
    for row, own, before in zip(rows, result, np.array(logits.astype(mx.float32)), strict=True):
        np.testing.assert_allclose(
            own, processed(before, row.spec, row.token_ids), rtol=0, atol=tolerance(len(NAMES), LARGEST)
        )


@pytest.mark.parametrize("only", [*NAMES, None], ids=str)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])
def test_logits_are_those_of_the_formulas_while_rows_come_and_go(only: str | None, dtype: mx.Dtype) -> None:
    random, processors = Random(5), Processors()
    rows: list[Row] = []

    for step in range(30):
        rows = [row for row in rows if random.random() < 0.9]
        rows += [random_row(random, **all_off_but(only)) for _ in range(random.randrange(3))]
        random.shuffle(rows)
        if not rows:
            continue
        processors.set_rows(rows)
        begin_step(rows)
        logits = mx.random.normal((len(rows), VOCAB_SIZE), scale=4.0, key=mx.random.key(step)).astype(dtype)

        assert_processed(processors, rows, logits)

        end_step(rows, random)


@pytest.mark.parametrize("only", [*NAMES, None], ids=str)
def test_a_batch_that_stays_the_same_is_followed_token_by_token(only: str | None) -> None:
    random, processors = Random(6), Processors()
    rows = [random_row(random, **all_off_but(only)) for _ in range(12)]
    processors.set_rows(rows)

    for step in range(40):
        begin_step(rows)
        assert_processed(processors, rows, mx.random.normal((12, VOCAB_SIZE), key=mx.random.key(step)))
        end_step(rows, random)


def test_rows_that_ask_for_nothing_are_not_changed_by_a_bit() -> None:
    random, processors = Random(7), Processors()
    rows = [random_row(random) if index % 2 else Row(row_spec(), decode) for index in range(10)]
    processors.set_rows(rows)
    begin_step(rows)
    logits = mx.random.normal((10, VOCAB_SIZE), key=mx.random.key(0))

    result = processors.apply(mx.array(logits))

    assert mx.array_equal(result[::2], logits[::2])


def test_a_batch_whose_rows_are_through_with_min_tokens_is_passed_on_untouched() -> None:
    processors, row = Processors(), Row(row_spec(min_tokens=2, end_tokens=ENDS), decode)
    processors.set_rows([row])
    logits, passed_on = mx.zeros((1, VOCAB_SIZE)), []

    for _ in range(4):
        begin_step([row])
        passed_on.append(processors.apply(logits) is logits)
        end_step([row], Random(0))

    assert passed_on == [False, False, False, True]


# --- Whole answers ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Any:
    return model_of("llama")


def mixed_specs(*, temperature: float = 0.0) -> list[RowSpec]:
    """Rows with everything mixed, some with nothing; made anew for each run, since constraints move on."""
    random = Random(11)
    return [
        row_spec(
            row_id=str(index),
            prompt_ids=tuple(random.choices(range(VOCAB_SIZE), k=1 + index * 3)),
            max_tokens=4 + index,
            end_tokens=ENDS,
            seed=index,
            temperature=temperature if index % 4 else 0.0,
            num_logprobs=3 if index % 3 == 0 else None,
            **({"top_p": 0.9} if index % 2 else {"top_k": 9}),
            **(any_parameters(random) if index % 5 else {}),
        )
        for index in range(14)
    ]


def answered_alone(model: Any, spec: RowSpec) -> tuple[int, ...]:
    """Greedy decoding without caches, one row, by the plain formulas."""
    token_ids: list[int] = []
    while len(token_ids) < spec.limit and (not token_ids or token_ids[-1] not in spec.end_tokens):
        logits = np.array(model(mx.array([[*spec.prompt_ids, *token_ids]]))[0, -1])
        token_ids.append(int(np.argmax(processed(logits, spec, token_ids))))
        if isinstance(spec.constraint, Residues):
            spec.constraint.advance(token_ids[-1])
    return tuple(token_ids)


@pytest.fixture(scope="module")
def answers_by_hand(model: Any) -> dict[str, tuple[int, ...]]:
    return {name_of(spec.row_id): answered_alone(model, spec) for spec in mixed_specs()}


@pytest.fixture(scope="module")
def drawn_alone(model: Any) -> dict[str, tuple[int, ...]]:
    """Row after row, on mlx-lm's caches."""
    engine = engine_over(model, max_num_seqs=1, packed=False, pipelined=False)
    return run(engine, mixed_specs(temperature=0.8)).tokens


@pytest.mark.thorough
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_no_answer_that_is_compared_hangs_on_rounding(model: Any, temperature: float) -> None:
    assert_steady(
        model,
        lambda: run(engine_over(model, max_num_seqs=8), mixed_specs(temperature=temperature)).tokens,
    )


@pytest.mark.parametrize("pipelined", [True, False], ids=["pipelined", "plain"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_greedy_answers_are_those_of_the_formulas_applied_by_hand(
    model: Any, answers_by_hand: dict[str, tuple[int, ...]], packed: bool, pipelined: bool
) -> None:
    engine = engine_over(model, max_num_seqs=5, packed=packed, pipelined=pipelined)

    tokens = run(engine, mixed_specs(), one_per_step=True).tokens

    assert tokens == answers_by_hand


@pytest.mark.thorough
@pytest.mark.parametrize("pipelined", [True, False], ids=["pipelined", "plain"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("one_per_step", [True, False], ids=["one after the other", "all at once"])
def test_answers_are_the_same_alone_and_in_any_company(
    model: Any, drawn_alone: dict[str, tuple[int, ...]], packed: bool, pipelined: bool, one_per_step: bool
) -> None:
    for width, order in sample_of(list(product((3, 8), (1, -1))), [(3, 1), (8, -1)]):
        engine = engine_over(model, max_num_seqs=width, packed=packed, pipelined=pipelined)
        company = mixed_specs(temperature=0.8)[::order]
        assert run(engine, company, one_per_step=one_per_step).tokens == drawn_alone
