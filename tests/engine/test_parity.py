"""Rows of a batch give exactly the tokens that mlx-lm's own `generate_step` gives each of them alone.

Greedy and in float32, over tiny random models of every kind of cache: plain, sliding window, convolution, recurrent.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, combinations
from random import Random
from typing import Any

import mlx.core as mx
import pytest
from engine_runs import decode, run
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.generate import generate_step
from tiny_models import CONFIGS, VOCAB_SIZE, build

from mlxq.contract import StopDetails
from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.engine.row import Row, RowSpec
from mlxq_worker.engine.runner import prefill_groups
from row_specs import row_spec

PREFILL_CHUNK = 16
# One token is decoded from, the rest is prefilled: nothing, one chunk exactly, one position more, several chunks;
# below and far above the sliding window of 8.
PROMPT_LENGTHS = (1, 3, 40, 9, 1, 20, 17, 5, 33, 18, 4, 12)
NUM_TOKENS = 24

# What mlx-lm's caches make of prompts that are padded on the right and take more than one chunk.
FAILS_IN_PADDED_CHUNKS = {
    "gemma3": "BatchRotatingKVCache raises on a chunk of one position",
    "gpt_oss": "BatchRotatingKVCache raises on a chunk of one position",
    "mamba2": "ssm_attn looks for the state of a row that goes on after the chunk behind its end",
}


@dataclass
class Reference:
    """A model and what mlx-lm generates with it for some prompts, `NUM_TOKENS` each, whatever token comes."""

    architecture: str
    model: Any
    prompts: list[tuple[int, ...]]
    outputs: list[tuple[int, ...]]
    smallest_gap: float
    """The smallest difference between the best and the second best log-probability of any step."""

    @classmethod
    def of(cls, architecture: str) -> Reference:
        model, random = build(architecture), Random(1)
        prompts = [tuple(random.randrange(VOCAB_SIZE) for _ in range(length)) for length in PROMPT_LENGTHS]
        steps = [list(generate_step(mx.array(prompt), model, max_tokens=NUM_TOKENS)) for prompt in prompts]
        best = mx.sort(mx.stack([logprobs for output in steps for _, logprobs in output]), axis=-1)[:, -2:]
        outputs = [tuple(int(token_id) for token_id, _ in output) for output in steps]
        return cls(architecture, model, prompts, outputs, float((best[:, 1] - best[:, 0]).min()))

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
        return {spec.row_id: _until_end(spec, output) for spec, output in zip(specs, self.outputs, strict=True)}

    def eos_set(self) -> frozenset[int]:
        """Three ids each of which is, for some prompt, the first of the three to be generated, and not at once."""
        for ids in combinations(sorted({*chain(*self.outputs)}), 3):
            hits = [next((token_id for token_id in output if token_id in ids), None) for output in self.outputs]
            if {hit for hit, output in zip(hits, self.outputs, strict=True) if hit != output[0]} >= set(ids):
                return frozenset(ids)
        raise AssertionError("no such ids")


def _until_end(spec: RowSpec, output: tuple[int, ...]) -> tuple[int, ...]:
    length = next((place for place, token_id in enumerate(output, start=1) if token_id in spec.end_tokens), spec.limit)
    return output[: min(length, spec.limit)]


@pytest.fixture(scope="module", params=CONFIGS)
def reference(request: pytest.FixtureRequest) -> Reference:
    return Reference.of(request.param)


def engine_for(reference: Reference, width: int, *, chunk: int = 512, pipelined: bool = True) -> BatchEngine:
    return BatchEngine(reference.model, decode, max_num_seqs=width, prefill_chunk=chunk, pipelined=pipelined)


def test_the_reference_is_varied_and_none_of_its_choices_is_a_near_tie(reference: Reference) -> None:
    assert len({*chain(*reference.outputs)}) > VOCAB_SIZE / 2
    assert reference.smallest_gap > 1e-4


@pytest.mark.parametrize("pipelined", [True, False], ids=["pipelined", "plain"])
@pytest.mark.parametrize("width", [1, 3, 8])
def test_rows_that_join_and_leave_at_different_steps_are_as_if_alone(
    reference: Reference, width: int, pipelined: bool
) -> None:
    specs = reference.specs(reference.eos_set())

    outcome = run(engine_for(reference, width, chunk=PREFILL_CHUNK, pipelined=pipelined), specs, one_per_step=True)

    assert outcome.tokens == reference.expected(specs)
    assert width / 2 < max(report.rows_computed for report in outcome.reports) <= width


def test_each_id_of_an_eos_set_ends_rows_alone_where_it_first_occurs(reference: Reference) -> None:
    eos_ids = reference.eos_set()
    specs = reference.specs(eos_ids, max_tokens=NUM_TOKENS)

    outcome = run(engine_for(reference, 3), specs)

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
def test_a_prompt_prefilled_in_chunks_is_as_if_prefilled_in_one_go(
    reference: Reference, chunk: int, request: pytest.FixtureRequest
) -> None:
    if chunk < max(PROMPT_LENGTHS) and (reason := FAILS_IN_PADDED_CHUNKS.get(reference.architecture)):
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
    specs = reference.specs(max_tokens=6)

    outcome = run(engine_for(reference, len(specs), chunk=chunk), specs)

    assert outcome.tokens == reference.expected(specs)


def test_prompts_of_one_and_two_tokens_start_together(reference: Reference, request: pytest.FixtureRequest) -> None:
    if reference.architecture in ("gemma3", "gpt_oss"):
        request.applymarker(pytest.mark.xfail(strict=True, reason=FAILS_IN_PADDED_CHUNKS["gemma3"]))
    specs = [row_spec(row_id=str(prompt), prompt_ids=prompt, max_tokens=4) for prompt in ((5,), (6, 7), (8, 9))]

    together = run(engine_for(reference, 3), specs).tokens

    for spec in specs:
        assert run(engine_for(reference, 1), [spec]).tokens == {spec.row_id: together[spec.row_id]}


def test_rows_cancelled_in_the_middle_keep_their_tokens_and_leave_the_others_alone(reference: Reference) -> None:
    specs = reference.specs(max_tokens=NUM_TOKENS)
    engine, cancelled_at = engine_for(reference, 8), {5: "2", 6: "0", 9: "7"}

    outcome = run(engine, specs, before_step=lambda step_index: engine.cancel(cancelled_at.get(step_index, "")))

    expected = reference.expected(specs)
    for step_index, row_id in cancelled_at.items():
        # The token of the step before is still on its way: the engine is one step ahead.
        assert outcome.results[row_id].stop_details == StopDetails(type="cancelled", token_index=step_index - 2)
        expected[row_id] = expected[row_id][: step_index - 1]
    assert outcome.tokens == expected


def test_an_engine_that_has_run_empty_starts_afresh(reference: Reference) -> None:
    specs = reference.specs(max_tokens=5)
    engine = engine_for(reference, 3)

    first, second = run(engine, specs), run(engine, specs)

    assert first.tokens == second.tokens == reference.expected(specs)


@given(lengths=st.lists(st.integers(1, 200), max_size=20))
def test_prompts_are_grouped_for_prefill_so_that_at_most_a_quarter_is_padding(lengths: list[int]) -> None:
    rows = [Row(row_spec(row_id=str(place), prompt_ids=(0,) * length), decode) for place, length in enumerate(lengths)]

    groups = list(prefill_groups(rows))

    assert sorted(row.spec.row_id for group in groups for row in group) == sorted(row.spec.row_id for row in rows)
    for group in groups:
        group_lengths = [len(row.spec.prompt_ids) for row in group]
        assert sum(group_lengths) >= 0.75 * max(group_lengths) * len(group_lengths)


def test_prompts_of_similar_length_share_one_prefill() -> None:
    rows = [Row(row_spec(prompt_ids=(0,) * length), decode) for length in (100, 80, 90, 10)]

    assert [len(group) for group in prefill_groups(rows)] == [1, 3]
