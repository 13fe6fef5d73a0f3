"""Rows of a batch give exactly the tokens that mlx-lm's own `generate_step` gives each of them alone.

Greedy and in float32, over tiny random models of every kind of cache: plain, sliding window, convolution, recurrent.
Models that can be packed are run both ways.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import chain, combinations, product
from random import Random
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from tests.support.engine_runs import decode, run
from tests.support.rounding import smallest_gap
from tests.support.row_specs import name_of, row_named, row_spec
from tests.support.thorough import sample_of
from tests.support.tiny_models import COMPARED, CONFIGS, VOCAB_SIZE, build
from tests.support.tried_models import engine_over, model_of, packing_of

from mlxq.contract import StopDetails
from mlxq_worker.engine.api import RowSpec
from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.engine.runners.on_cpu import powers, single_query

PREFILL_CHUNK = 16
# One token is decoded from, the rest is prefilled: nothing, one chunk exactly, one position more, several chunks;
# below and far above the sliding window of 8.
PROMPT_LENGTHS = (1, 3, 40, 9, 1, 20, 17, 5, 33, 18, 4, 12)
NUM_TOKENS = 18

pytestmark = pytest.mark.thorough


PROMPT_SEEDS = {"mixtral": 7}
"""For models whose choices after the usual prompts are near-ties."""


def alone(model: Any, prompt: tuple[int, ...], num_tokens: int) -> tuple[int, ...]:
    """What mlx-lm generates."""
    return tuple(int(token_id) for token_id, _ in generate_step(mx.array(prompt), model, max_tokens=num_tokens))


@dataclass
class Reference:
    """A model, how to run it, and what mlx-lm generates with it: `NUM_TOKENS` for each prompt, whatever token comes."""

    model: Any
    packed: bool
    prompts: list[tuple[int, ...]]
    outputs: list[tuple[int, ...]]

    @classmethod
    def of(cls, architecture: str, *, packed: bool) -> Reference:
        prompts, outputs = prompts_and_outputs(architecture)
        return cls(model_of(architecture), packed, prompts, outputs)

    def engine(self, width: int, *, chunk: int = 512, pipelined: bool = True) -> BatchEngine:
        return engine_over(
            self.model,
            max_num_seqs=width,
            max_num_batched_tokens=chunk,
            packed=self.packed,
            pipelined=pipelined,
        )

    def specs(self, end_ids: frozenset[int] = frozenset(), **changes: Any) -> list[RowSpec]:
        """A row for every prompt; `max_tokens` differs from row to row unless it is given."""
        ends = {"end_tokens": {end_id: f"<{end_id}>" for end_id in end_ids}, "eos_ids": end_ids}
        return [
            row_spec(
                row_id=str(index), prompt_ids=prompt, **ends, **{"max_tokens": 1 + index * 7 % NUM_TOKENS, **changes}
            )
            for index, prompt in enumerate(self.prompts)
        ]

    def expected(self, specs: list[RowSpec]) -> dict[str, tuple[int, ...]]:
        """By row id, the tokens up to the first end token or the limit."""
        return {
            name_of(spec.row_id): _until_end(spec, output) for spec, output in zip(specs, self.outputs, strict=True)
        }

    def eos_set(self) -> frozenset[int]:
        """Three ids each of which is, for some prompt, the first of the three to be generated, and not at once."""
        for ids in combinations(sorted({*chain(*self.outputs)}), 3):
            hits = [next((token_id for token_id in output if token_id in ids), None) for output in self.outputs]
            if {hit for hit, output in zip(hits, self.outputs, strict=True) if hit != output[0]} >= set(ids):
                return frozenset(ids)
        raise AssertionError("no such ids")


@cache
def prompts_and_outputs(architecture: str) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """What a model is asked, and what mlx-lm generates with it."""
    model, random = model_of(architecture), Random(PROMPT_SEEDS.get(architecture, 1))
    prompts = [tuple(random.randrange(VOCAB_SIZE) for _ in range(length)) for length in PROMPT_LENGTHS]
    return prompts, [alone(model, prompt, NUM_TOKENS) for prompt in prompts]


def _until_end(spec: RowSpec, output: tuple[int, ...]) -> tuple[int, ...]:
    length = next(
        (position for position, token_id in enumerate(output, start=1) if token_id in spec.end_tokens), spec.limit
    )
    return output[: min(length, spec.limit)]


@pytest.fixture(scope="module", params=[f"{each}-{way}" for way in ("packed", "padded") for each in COMPARED])
def reference(request: pytest.FixtureRequest) -> Reference:
    architecture, kind = request.param.split("-")
    return Reference.of(architecture, packed=kind == "packed")


@pytest.mark.parametrize("architecture", CONFIGS)
def test_models_with_plain_attention_can_be_packed(architecture: str) -> None:
    assert packing_of(model_of(architecture)).way


@pytest.mark.parametrize("architecture", COMPARED)
def test_the_reference_is_varied_and_none_of_its_choices_is_a_near_tie(architecture: str) -> None:
    prompts, outputs = prompts_and_outputs(architecture)

    assert len({*chain(*outputs)}) > VOCAB_SIZE / 2
    assert smallest_gap(model_of(architecture), *zip(prompts, outputs, strict=True)) > 2


@pytest.mark.parametrize(
    ("width", "pipelined"), sample_of(list(product((1, 3, 8), (True, False))), [(1, True), (3, False), (8, True)])
)
def test_rows_that_join_and_leave_at_different_steps_are_as_if_alone(
    reference: Reference, width: int, pipelined: bool
) -> None:
    specs = reference.specs(reference.eos_set())

    outcome = run(reference.engine(width, chunk=PREFILL_CHUNK, pipelined=pipelined), specs, one_per_step=True)

    assert outcome.tokens == reference.expected(specs)
    assert width / 2 < max(report.rows_computed for report in outcome.reports) <= width


@pytest.mark.parametrize("architecture", [*COMPARED, "one query for each head of keys"])
def test_rows_are_as_if_alone_where_numpy_computes_for_mlx(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if architecture in COMPARED:
        reference = Reference.of(architecture, packed=True)
    else:
        model, (prompts, _) = build("llama", num_key_value_heads=4), prompts_and_outputs("llama")
        reference = Reference(model, True, prompts, [alone(model, prompt, NUM_TOKENS) for prompt in prompts])
    specs, engine = reference.specs(), reference.engine(3, chunk=PREFILL_CHUNK)  # how it attends has been tried out
    monkeypatch.setattr(powers, "MANY", 1)
    monkeypatch.setattr(single_query, "MANY", 1)
    monkeypatch.setattr(single_query, "PER_ROW", 1)

    outcome = run(engine, specs)

    assert outcome.tokens == reference.expected(specs)


def test_each_id_of_an_eos_set_ends_rows_alone_where_it_first_occurs(reference: Reference) -> None:
    eos_ids = reference.eos_set()
    specs = reference.specs(eos_ids, max_tokens=NUM_TOKENS)

    outcome = run(reference.engine(3), specs)

    assert outcome.tokens == reference.expected(specs)
    ended_by = {result.stop_details.token_id for result in outcome.results.values()}
    assert ended_by - {None} == eos_ids
    for result in outcome.results.values():
        *before, last = result.token_ids
        if last in eos_ids:
            assert result.stop_details == StopDetails(
                type="eos_token", token_id=last, token=f"<{last}>", token_index=len(before)
            )
            assert result.text == decode(before)
        else:
            assert result.stop_details == StopDetails(type="max_tokens", token_index=NUM_TOKENS - 1)


@pytest.mark.parametrize("chunk", [1, 6, 512])
def test_a_prompt_prefilled_in_chunks_is_as_if_prefilled_in_one_go(reference: Reference, chunk: int) -> None:
    specs = reference.specs(max_tokens=6)
    asked = specs[: sample_of(len(specs), 5)] if chunk == 1 else specs  # of prompts of up to 40 tokens

    outcome = run(reference.engine(len(specs), chunk=chunk), asked)

    expected = reference.expected(specs)
    assert outcome.tokens == {name_of(spec.row_id): expected[name_of(spec.row_id)] for spec in asked}


def test_prompts_of_one_and_two_tokens_start_together(reference: Reference) -> None:
    specs = [row_spec(row_id=str(prompt), prompt_ids=prompt, max_tokens=4) for prompt in ((5,), (6, 7), (8, 9))]

    together = run(reference.engine(3), specs).tokens

    assert together == {name_of(spec.row_id): alone(reference.model, spec.prompt_ids, spec.limit) for spec in specs}


def test_rows_cancelled_in_the_middle_keep_their_tokens_and_leave_the_others_alone(reference: Reference) -> None:
    specs = reference.specs(max_tokens=NUM_TOKENS)
    engine, cancelled_at = reference.engine(8), {5: "2", 6: "0", 9: "7"}

    outcome = run(
        engine, specs, before_step=lambda step_index: engine.cancel(row_named(cancelled_at.get(step_index, "")))
    )

    expected = reference.expected(specs)
    for step_index, row_id in cancelled_at.items():
        # The token of the step before is still on its way: the engine is one step ahead.
        assert outcome.results[row_id].stop_details == StopDetails(type="cancelled", token_index=step_index - 2)
        expected[row_id] = expected[row_id][: step_index - 1]
    assert outcome.tokens == expected


def test_an_engine_that_has_run_empty_starts_afresh(reference: Reference) -> None:
    specs = reference.specs(max_tokens=5)
    engine = reference.engine(3)

    first, second = run(engine, specs), run(engine, specs)

    assert first.tokens == second.tokens == reference.expected(specs)


@pytest.mark.parametrize("architecture", COMPARED)
def test_packed_rows_far_longer_than_their_neighbours_are_as_if_alone(architecture: str) -> None:
    model, random = model_of(architecture), Random(PROMPT_SEEDS.get(architecture, 2))
    prompts = [tuple(random.randrange(VOCAB_SIZE) for _ in range(length)) for length in (300, 5, 7, 4, 250, 8, 3, 6)]
    # The long rows come and go among short ones, and grow over the 256 columns that a slot begins with.
    specs = [row_spec(row_id=str(n), prompt_ids=prompt, max_tokens=4 + 3 * n) for n, prompt in enumerate(prompts)]

    outcome = run(engine_over(model, max_num_seqs=6, max_num_batched_tokens=64), specs)

    expected = [alone(model, spec.prompt_ids, spec.limit) for spec in specs]
    assert smallest_gap(model, *zip(prompts, expected, strict=True)) > 2
    assert outcome.tokens == {name_of(spec.row_id): tokens for spec, tokens in zip(specs, expected, strict=True)}
