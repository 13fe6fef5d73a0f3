"""An engine that runs ahead only where that pays: what it gives is the same, and hardly a row is computed in vain."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Any

import pytest
from tests.support.countdown import Countdown, counting_from
from tests.support.engine_runs import decode, run
from tests.support.rounding import assert_steady
from tests.support.row_specs import row_spec
from tests.support.tiny_models import VOCAB_SIZE
from tests.support.tried_models import engine_over, model_of, packing_of

from mlxq.contract import Beam
from mlxq_worker.engine.api import RowSpec, StepReport
from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.engine.kvcache import device
from mlxq_worker.engine.scheduling.run_ahead import RunAhead

WIDTH = 4


class OnGpu(RunAhead):
    """As if Python took three hundredths of each step, and a GPU the rest."""

    def took(self, host_s: float, wait_s: float, *, was_ahead: bool, copy_s: float = 0.0) -> None:
        super().took(0.03, 0.97, was_ahead=False)


class Watched(BatchEngine):
    """Notes after each step whether another was on its way by then."""

    def __init__(self, model: Any, **options: Any) -> None:
        if "pipelined" not in options:
            options["run_ahead"] = OnGpu()
        if options.get("packed", True):
            options["packing"] = packing_of(model)
        super().__init__(model, decode, max_num_seqs=WIDTH, max_num_batched_tokens=32, **options)
        self.ran_ahead: list[bool] = []

    def step(self, now: float) -> StepReport:
        report = super().step(now)
        self.ran_ahead.append(self._in_flight is not None)
        return report


def short_and_long_specs() -> list[RowSpec]:
    """Answers that a token ends after a few, then answers that run to their limits, then the first kind again. Some
    wait for their last token before the next is chosen."""
    random = Random(4)
    any_token = dict.fromkeys(range(0, VOCAB_SIZE, 3), "<end>")
    kinds = [{"end_tokens": any_token, "eos_ids": frozenset(any_token)}, {"max_tokens": 40}]
    return [
        row_spec(
            row_id=f"{phase}-{index}",
            prompt_ids=tuple(random.randrange(VOCAB_SIZE) for _ in range(random.randint(1, 40))),
            seed=index,
            repetition_penalty=1.2 if index % 5 == 0 else 1.0,
            **kinds[phase % 2],
        )
        for phase in range(3)
        for index in range(10)
    ]


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "mamba2"])
def test_no_answer_that_is_compared_hangs_on_rounding(architecture: str) -> None:
    model, specs = model_of(architecture), short_and_long_specs()

    assert_steady(model, lambda: run(engine_over(model, max_num_seqs=16, packed=False), specs).tokens)


@pytest.mark.parametrize(
    "kind", [f"{each}-{way}" for each in ("llama", "gemma3", "mamba2") for way in ("packed", "padded")]
)
def test_rows_get_the_same_tokens_while_the_engine_changes_its_ways(kind: str) -> None:
    architecture, way = kind.split("-")
    model, specs = model_of(architecture), short_and_long_specs()

    engine = Watched(model, packed=way == "packed")
    outcome = run(engine, specs)

    in_step = run(Watched(model, packed=way == "packed", pipelined=False), specs)
    assert outcome.tokens == in_step.tokens
    busy = engine.ran_ahead[:-2]
    assert sum(before != after for before, after in pairwise(busy)) >= 2
    assert sum(report.rows_useful for report in outcome.reports) == sum(map(len, outcome.tokens.values()))


@pytest.mark.parametrize("longest", [10, 40, 100])
def test_hardly_a_row_is_computed_in_vain_however_short_the_answers_are(longest: int) -> None:
    random = Random(longest)
    specs = [counting_from(random.randint(1, longest), row_id=str(index)) for index in range(300)]

    outcome = run(Watched(Countdown()), specs)

    assert outcome.row_efficiency >= 0.97


def test_answers_that_end_at_their_limits_are_run_ahead_of() -> None:
    engine = Watched(Countdown())

    run(engine, [counting_from(100, row_id=str(index), max_tokens=10 + index) for index in range(20)])

    assert all(engine.ran_ahead[:-1])


def test_on_a_cpu_the_engine_never_runs_ahead() -> None:
    engine = Watched(Countdown(), pipelined=None)

    run(engine, [counting_from(100, row_id=str(index), max_tokens=10 + index) for index in range(20)])

    assert not any(engine.ran_ahead)


def test_on_a_gpu_the_engine_runs_ahead_until_it_has_seen_that_it_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "is_gpu", lambda: True)
    engine = Watched(Countdown(), pipelined=None)

    run(engine, [counting_from(100, row_id=str(index), max_tokens=10 + index) for index in range(WIDTH)])

    assert engine.ran_ahead[0]  # from there on times decide


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_a_beam_search_without_others_takes_a_step_for_each_token(packed: bool) -> None:
    search = row_spec(prompt_ids=(1, 2, 3), max_tokens=30, beam=Beam(width=WIDTH))

    outcome = run(Watched(model_of("llama"), packed=packed), [search])

    # One step for each, the prompt's, and one more for the first, which was launched before anything was known.
    assert len(outcome.reports) <= 32
