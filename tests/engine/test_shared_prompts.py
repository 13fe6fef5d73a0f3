"""Rows with equal prompts (n > 1) share one prefill and get what each gets alone, packed or on every kind of cache."""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Any

import mlx.core as mx
import pytest
from tests.support.engine_runs import decode, run
from tests.support.rounding import assert_steady
from tests.support.row_specs import row_spec
from tests.support.tiny_models import COMPARED, VOCAB_SIZE, build
from tests.support.tried_models import engine_over, model_of

from mlxq_worker.engine.api import RowSpec
from mlxq_worker.engine.engine import BatchEngine

pytestmark = pytest.mark.thorough

NUM_ANSWERS = 4
PROMPT_LENGTHS = (1, 2, 20, 100)


def specs_of(prompts: list[tuple[int, ...]], **changes: Any) -> list[RowSpec]:
    """Rows of different seeds and lengths, several for each prompt, and between them rows of other prompts."""
    return [
        row_spec(
            row_id=f"{len(prompt)}/{index}",
            prompt_ids=prompt if index else prompt[::-1],
            temperature=1.0,
            seed=100 * len(prompt) + index,
            max_tokens=3 + index * 2,
            **changes,
        )
        for prompt in prompts
        for index in range(NUM_ANSWERS + 1)
    ]


def random_prompts() -> list[tuple[int, ...]]:
    random = Random(3)
    return [tuple(random.randrange(VOCAB_SIZE) for _ in range(length)) for length in PROMPT_LENGTHS]


@pytest.mark.parametrize("architecture", COMPARED)
def test_no_answer_that_is_compared_hangs_on_rounding(architecture: str) -> None:
    model, specs = model_of(architecture), specs_of(random_prompts())

    assert_steady(model, lambda: run(engine_over(model, max_num_seqs=20, packed=False), specs).tokens)


@cache
def alone(architecture: str, way: str) -> dict[str, tuple[int, ...]]:
    """What each row gets in a batch of its own, where nothing is left of those before it."""
    engine = engine_over(model_of(architecture), max_num_seqs=1, max_prefix_bytes=0, packed=way == "packed")
    return run(engine, specs_of(random_prompts())).tokens


@pytest.mark.parametrize("width", [3, 20])
@pytest.mark.parametrize("kind", [f"{each}-{way}" for each in COMPARED for way in ("packed", "padded")])
def test_answers_to_one_prompt_are_those_of_its_rows_alone(kind: str, width: int) -> None:
    architecture, way = kind.split("-")
    engine = engine_over(model_of(architecture), max_num_seqs=width, max_num_batched_tokens=64, packed=way == "packed")

    together = run(engine, specs_of(random_prompts())).tokens

    assert together == alone(architecture, way)


class Counted:
    """A model that counts the tokens that go through it."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.num_tokens = 0

    def __call__(self, tokens: mx.array, cache: Any) -> mx.array:
        self.num_tokens += tokens.size
        logits: mx.array = self._model(tokens, cache=cache)
        return logits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def test_four_answers_to_a_prompt_of_400_tokens_cost_one_prefill_on_padded_caches() -> None:
    model, prompt = Counted(build("gemma3")), random_prompts()[-1] * 4
    specs = [row_spec(row_id=str(index), prompt_ids=prompt, max_tokens=1) for index in range(4)]
    engine = BatchEngine(model, decode, max_num_seqs=8, max_num_batched_tokens=64, packed=False)
    model.num_tokens = 0

    run(engine, specs)

    assert model.num_tokens == 399 + 4
