"""Beam search in the engine finds what transformers' own finds, on the demo model's weights, in float32.

Needs torch, which is large and used nowhere else: `make parity` puts it beside the virtual environment and runs this.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest
import torch
from tests.support.engine_runs import run
from tests.support.row_specs import name_of, row_spec
from transformers import LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

import mlxq_worker.demo
from mlxq.contract import Beam
from mlxq_worker.engine.api import RowId, RowSpec
from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.model.load import load_model

DEMO_MODEL = Path(mlxq_worker.demo.__file__).parent / "model"
VOCAB_SIZE = 1705
LENGTH_PENALTIES = (0.0, 0.6, 1.0, 2.0)
EARLY_STOPPING: tuple[bool | Literal["never"], ...] = (False, True, "never")
EOS_LISTS = ((1699, 1702, 1703), (13, 40, 1699), (6, 301, 1702))
"""The model's own end tokens; and ids that it writes often, so that hypotheses end at many lengths."""
NOISE = 1e-4
ENOUGH = 0.75

Found = list[tuple[tuple[int, ...], float]]
"""Generated tokens and score of each hypothesis, the best first."""


@dataclass(frozen=True)
class Case:
    """What is searched for."""

    prompt: tuple[int, ...]
    eos_ids: tuple[int, ...]
    max_tokens: int
    min_tokens: int
    beam: Beam


def cases(width: int) -> list[Case]:
    """Every length penalty with every way to stop, each after a prompt of its own, with each list of end tokens in
    turn."""
    random = Random(width)
    return [
        Case(
            prompt=(1698, *(random.randrange(VOCAB_SIZE - 16) for _ in range(3 + index * 5 % 90))),
            eos_ids=EOS_LISTS[index % len(EOS_LISTS)],
            max_tokens=12 + index % 9,
            min_tokens=index % 4,
            beam=Beam(width=width, length_penalty=length_penalty, early_stopping=early_stopping),
        )
        for index, (length_penalty, early_stopping) in enumerate(product(LENGTH_PENALTIES, EARLY_STOPPING))
    ]


@cache
def reference_model() -> Any:
    torch.set_num_threads(1)
    return LlamaForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32).eval()


class Noise(LogitsProcessor):  # type: ignore[misc]
    """Moves every log probability by up to `NOISE`."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return scores + NOISE * (2 * torch.rand(scores.shape, generator=self._generator) - 1)


@cache
def reference(case: Case, *, noisy: bool = False) -> Found:
    """What transformers finds. `generate` by itself would decode greedily at width 1."""
    model, prompt = reference_model(), torch.tensor([case.prompt])
    width = case.beam.width
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        custom_generate=type(model)._beam_search,
        logits_processor=LogitsProcessorList([Noise()] if noisy else []),
        do_sample=False,
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=case.max_tokens,
        min_new_tokens=case.min_tokens,
        eos_token_id=list(case.eos_ids),
        pad_token_id=0,
        length_penalty=case.beam.length_penalty,
        early_stopping=case.beam.early_stopping,
        return_dict_in_generate=True,
        output_scores=True,
    )
    lengths = (output.beam_indices >= 0).sum(dim=1).tolist()  # without padding
    generated = output.sequences[:, len(case.prompt) :].tolist()
    sequences = [tuple(token_ids[:length]) for token_ids, length in zip(generated, lengths, strict=True)]
    return list(zip(sequences, output.sequences_scores.tolist(), strict=True))


def is_clear(case: Case, expected: Found) -> bool:
    """Whether nothing in the search hangs on less than noise far above that of float32."""
    return [token_ids for token_ids, _ in reference(case, noisy=True)] == [token_ids for token_ids, _ in expected]


def spec_of(case: Case, row_id: str) -> RowSpec:
    return row_spec(
        row_id=row_id,
        prompt_ids=case.prompt,
        max_tokens=case.max_tokens,
        min_tokens=case.min_tokens,
        end_tokens={eos_id: f"<{eos_id}>" for eos_id in case.eos_ids},
        eos_ids=frozenset(case.eos_ids),
        beam=case.beam,
        num_beams_returned=case.beam.width,
    )


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_hypotheses_and_scores_are_those_of_transformers(width: int, packed: bool) -> None:
    every = cases(width)
    engine = BatchEngine(load_model("demo").model, lambda _: "", max_num_seqs=3 * width, packed=packed)

    results = run(engine, [spec_of(case, str(index)) for index, case in enumerate(every)]).results

    num_clear = 0
    for index, case in enumerate(every):
        expected = reference(case)
        if is_clear(case, expected):
            num_clear += 1
            found = [results[name_of(RowId(str(index), place))] for place in range(width)]
            assert [result.token_ids for result in found] == [token_ids for token_ids, _ in expected], case
            scores = [score for _, score in expected]
            most = NOISE * case.max_tokens  # a score is a sum of as many at most
            assert [result.beam_score for result in found] == pytest.approx(scores, abs=most), case
    assert num_clear >= ENOUGH * len(every)
