"""Beam searches in a batch find what `BeamSearch` finds on a model without any cache, alone and beside other rows."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache
from tests.support.countdown import Countdown
from tests.support.engine_runs import decode, run
from tests.support.rounding import assert_steady, logprobs_of
from tests.support.row_specs import name_of, row_spec
from tests.support.tiny_models import COMPARED, VOCAB_SIZE, build
from tests.support.tried_models import engine_over, model_of

from mlxq.contract import Beam, StopDetails
from mlxq.errors import RequestError
from mlxq_worker.engine.api import RowResult, RowSpec
from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.engine.kvcache.memory import measure_cost
from mlxq_worker.engine.rows.beam import BeamSearch, Hypothesis
from mlxq_worker.engine.runners.slot_cache import Layout

pytestmark = pytest.mark.thorough

EOS, OTHER_EOS, STOP = 5, 9, 33
ENDS = {"end_tokens": {EOS: "<5>", OTHER_EOS: "<9>", STOP: "<33>"}, "eos_ids": frozenset({EOS, OTHER_EOS})}
KINDS = [f"{each}-{way}" for each in COMPARED for way in ("packed", "padded")]


def prompt_of(length: int) -> tuple[int, ...]:
    random = Random(length)
    return tuple(random.randrange(VOCAB_SIZE) for _ in range(length))


def beam_spec(length: int, **changes: Any) -> RowSpec:
    """A search of width 4 after a prompt of this length, three of whose hypotheses are returned."""
    defaults: dict[str, Any] = {"beam": Beam(width=4), "num_beams_returned": 3, "max_tokens": 14}
    return row_spec(**{"row_id": f"beam{length}", "prompt_ids": prompt_of(length), **ENDS, **defaults, **changes})


def beam_specs() -> list[RowSpec]:
    """Searches that differ in everything; one prompt is long enough to be a prefix."""
    return [
        beam_spec(1, beam=Beam(width=2, early_stopping=True), num_beams_returned=2),
        beam_spec(7, beam=Beam(width=5, length_penalty=0.0), max_tokens=9),
        beam_spec(21, min_tokens=6),
        beam_spec(90, beam=Beam(width=4, early_stopping="never", length_penalty=2.0)),
    ]


def plain_specs() -> list[RowSpec]:
    """Rows some of which are drawn, and one of which has to wait for its last token before the next is chosen."""
    *specs, last = (
        row_spec(row_id=f"plain{n}", prompt_ids=prompt_of(n), max_tokens=3 + n % 20, temperature=n % 2, seed=n, **ENDS)
        for n in (2, 5, 12, 30, 41)
    )
    return [*specs, replace(last, presence_penalty=1.0)]


def engine_of(kind: str, *, width: int = 16, pipelined: bool = True) -> BatchEngine:
    architecture, way = kind.split("-")
    return engine_over(
        model_of(architecture),
        max_num_seqs=width,
        max_num_batched_tokens=32,
        packed=way == "packed",
        pipelined=pipelined,
    )


@cache
def reference(architecture: str) -> list[list[tuple[tuple[int, ...], float]]]:
    """The best hypotheses of every search of `beam_specs`, with their scores."""
    model = model_of(architecture)

    def continuations(prompt: tuple[int, ...], hypothesis: Hypothesis) -> list[tuple[int, float]]:
        logits = model(mx.array([prompt + hypothesis.token_ids]), cache=make_prompt_cache(model))[0, -1]
        logprobs: Any = (logits - mx.logsumexp(logits)).tolist()
        return sorted(enumerate(logprobs), key=lambda pair: -pair[1])

    def best(spec: RowSpec) -> list[tuple[tuple[int, ...], float]]:
        assert spec.beam is not None
        ends = frozenset(spec.end_tokens)
        search = BeamSearch(spec.beam, end_ids=ends, limit=spec.limit, min_tokens=spec.min_tokens)
        while not search.is_over:
            search.advance([continuations(spec.prompt_ids, each) for each in search.running])
        return [(each.token_ids, search.score(each)) for each in search.best(spec.num_beams_returned)]

    return [best(spec) for spec in beam_specs()]


@cache
def off_by(architecture: str, token_ids: tuple[int, ...]) -> float:
    """How far rounding moves log probabilities after these tokens."""
    return logprobs_of(model_of(architecture), token_ids)[1]


def found(results: dict[str, RowResult], spec: RowSpec) -> list[RowResult]:
    return [results[name_of(row_id)] for row_id in spec.answer_ids]


@pytest.mark.parametrize("architecture", COMPARED)
def test_no_search_that_is_compared_hangs_on_rounding(architecture: str) -> None:
    model, specs = model_of(architecture), [*beam_specs(), *plain_specs()]

    assert_steady(model, lambda: run(engine_over(model, max_num_seqs=16, packed=False), specs).tokens)


@pytest.mark.parametrize("pipelined", [True, False], ids=["pipelined", "plain"])
@pytest.mark.parametrize("kind", KINDS)
def test_searches_beside_other_rows_find_what_they_find_alone_and_leave_those_as_they_are(
    kind: str, pipelined: bool
) -> None:
    specs, others = beam_specs(), plain_specs()
    mixed = [spec for pair in zip(others, specs, strict=False) for spec in pair] + others[len(specs) :]

    together = run(engine_of(kind, pipelined=pipelined), mixed, one_per_step=True).results
    alone = run(engine_of(kind, pipelined=pipelined), others).results

    architecture = kind.split("-")[0]
    for spec, expected in zip(specs, reference(architecture), strict=True):
        results = found(together, spec)
        assert [result.token_ids for result in results] == [token_ids for token_ids, _ in expected]
        for result, (token_ids, score) in zip(results, expected, strict=True):
            off = off_by(architecture, (*spec.prompt_ids, *token_ids))
            assert result.beam_score == pytest.approx(score, abs=off * len(token_ids))  # a sum of as many
    assert {row_id: result.token_ids for row_id, result in together.items() if row_id in alone} == {
        row_id: result.token_ids for row_id, result in alone.items()
    }
    assert len(together) == len(others) + sum(spec.num_beams_returned for spec in specs)


def test_each_hypothesis_says_how_it_ended_and_all_end_on_one_step() -> None:
    specs, kind = beam_specs(), "mamba2-padded"

    outcome = run(engine_of(kind), specs)

    for spec in specs:
        ids = {name_of(result.row_id) for result in found(outcome.results, spec)}
        assert (
            sum(not ids.isdisjoint({name_of(each.row_id) for each in report.finished}) for report in outcome.reports)
            == 1
        )
    seen = set()
    for result in outcome.results.values():
        *before, last = result.token_ids
        details = result.stop_details
        seen.add(details.type)
        assert details.token_index == len(before)
        if last in ENDS["end_tokens"]:
            assert details.type == ("stop_token" if last == STOP else "eos_token")
            assert (details.token_id, details.token) == (last, f"<{last}>")
            assert result.text == decode(before)
        else:
            assert details == StopDetails(type="max_tokens", token_index=len(before))
            assert result.text == decode(result.token_ids)
    assert seen == {"eos_token", "stop_token", "max_tokens"}


def test_a_search_is_cancelled_whole_and_reports_the_best_that_it_has() -> None:
    engine, spec = engine_of("llama-packed"), beam_spec(40, end_tokens={}, eos_ids=frozenset())

    outcome = run(
        engine,
        [spec, *plain_specs()],
        before_step=lambda step_index: engine.cancel(spec.row_id) if step_index == 11 else None,
    )

    results = found(outcome.results, spec)
    assert [result.stop_details.type for result in results] == ["cancelled"] * 3
    assert len({result.token_ids for result in results}) == 3
    assert {len(result.token_ids) for result in results} == {5}  # two steps of prefill, then a token every other step
    scores = [result.beam_score or 0 for result in results]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("cancelled_at", [0, 1])
def test_a_search_that_is_cancelled_before_its_first_token_still_reports_as_many_results(cancelled_at: int) -> None:
    engine, spec = engine_of("llama-packed"), beam_spec(90)

    outcome = run(
        engine,
        [spec],
        before_step=lambda step_index: engine.cancel(spec.row_id) if step_index == cancelled_at else None,
    )

    for result in found(outcome.results, spec):
        assert (result.token_ids, result.text) == ((), "")
        assert result.stop_details == StopDetails(type="cancelled")


def test_a_search_that_is_overdue_ends_with_what_it_has() -> None:
    spec = beam_spec(5, timeout_s=6.0, end_tokens={}, eos_ids=frozenset())

    outcome = run(engine_of("gemma3-padded"), [spec])

    assert [result.stop_details.type for result in found(outcome.results, spec)] == ["deadline"] * 3


def test_a_search_waits_until_there_are_as_many_places_as_it_is_wide() -> None:
    others = [row_spec(row_id=str(index), prompt_ids=(index,), max_tokens=4 + index) for index in range(5)]
    spec = beam_spec(6)

    outcome = run(engine_of("llama-packed", width=6), [*others, spec])

    assert max(report.num_running for report in outcome.reports) <= 6
    assert outcome.tokens == {
        **run(engine_of("llama-packed"), others).tokens,
        **run(engine_of("llama-packed"), [spec]).tokens,
    }


def test_a_search_that_is_wider_than_the_batch_is_refused_and_told_both_numbers() -> None:
    with pytest.raises(RequestError, match="width 4 takes 4 rows of the batch, and this worker decodes 3") as refusal:
        engine_of("llama-packed", width=3).admit(beam_spec(5))

    assert (refusal.value.param, refusal.value.code) == ("beam_width", "beam_too_wide")


class Unmergeable:
    """A cache that can't be batched, as those of some architectures."""

    nbytes = 0
    state = ()


def test_a_model_that_decodes_one_row_at_a_time_refuses_searches_and_says_why() -> None:
    engine = BatchEngine(Countdown([Unmergeable()]), decode, max_num_seqs=8)

    with pytest.raises(RequestError, match=r"decodes 1 at most .* because its model's caches can't be batched"):
        engine.admit(beam_spec(5))


def test_a_search_counts_with_all_its_rows_against_the_memory() -> None:
    model, spec = model_of("llama"), beam_spec(50, max_tokens=50)
    room = measure_cost(model).of_row(100) * 3
    engine = engine_over(model, max_num_seqs=8, kv_bytes=room)

    with pytest.raises(RequestError, match=r"up to 50 generated ones, 4 times for as many beams, need") as refusal:
        engine.admit(spec)

    assert (refusal.value.param, refusal.value.code) == ("max_tokens", "kv_cache_exceeded")


def test_the_rows_of_a_search_share_one_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_over(model_of("llama"), max_num_seqs=8, max_num_batched_tokens=64)
    sizes = []
    monkeypatch.setattr(
        "mlxq_worker.engine.runners.packed.Layout",
        lambda *arguments: sizes.append((layout := Layout(*arguments)).positions.size) or layout,
    )
    spec = beam_spec(400, end_tokens={}, eos_ids=frozenset(), max_tokens=6)

    run(engine, [spec])

    assert sum(sizes) == 400 + 5 * 4  # then five more tokens for each of four hypotheses


def test_hypotheses_that_outgrow_their_slots_take_what_they_have_with_them() -> None:
    spec, model = beam_spec(250, end_tokens={}, eos_ids=frozenset()), model_of("llama")

    outcomes = [
        run(engine_over(model, max_num_seqs=6, max_prefix_bytes=max_prefix_bytes), [spec, *plain_specs()])
        for max_prefix_bytes in (0, 1_000_000)  # 256 columns are outgrown only where the prompt lies in them
    ]

    assert outcomes[0].tokens == outcomes[1].tokens


class Broken:
    """A model that computes no numbers once it has seen so many tokens."""

    def __init__(self, model: Any, num_calls: int) -> None:
        self._model = model
        self._num_calls = num_calls

    def __call__(self, tokens: mx.array, cache: Any) -> mx.array:
        self._num_calls -= 1
        logits: mx.array = self._model(tokens, cache=cache)
        return logits if self._num_calls > 0 else logits * mx.nan

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def test_a_search_whose_logits_are_no_numbers_ends_as_an_error() -> None:
    model, spec = build("gemma3"), beam_spec(5)
    engine = BatchEngine(Broken(model, 4), decode, max_num_seqs=8)

    outcome = run(engine, [spec])

    for result in found(outcome.results, spec):
        assert (result.stop_details.type, result.error_code) == ("error", "nan_logits")


def test_hypotheses_that_a_tiny_vocabulary_does_not_have_are_errors() -> None:
    spec = beam_spec(5, beam=Beam(width=70), num_beams_returned=70, max_tokens=1)

    outcome = run(engine_of("llama-packed", width=70), [spec])

    results = found(outcome.results, spec)
    assert [result.error_code for result in results] == [None] * VOCAB_SIZE + ["no_token_allowed"] * 6
