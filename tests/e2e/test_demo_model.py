"""The demo model ends every kind of answer on its own end token; with one token of the set alone most run away.

Real weights, preparer and engine; no queue.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from tests.support.engine_runs import run

from mlxq.requests.openai import parse_object
from mlxq_worker.demo.tasks import MAX_COUNT_TOKENS, Example, held_out
from mlxq_worker.dialects.tool_format import tool_format_of
from mlxq_worker.engine.api import RowResult
from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.model.eos import EosSet, resolve_eos
from mlxq_worker.model.load import LoadedModel, load_model
from mlxq_worker.text.prepare import ModelPreparer

WIDTH = 64
NUM_EXAMPLES = 300
NUM_LONG = 60
"""As many of them are let run to their limit: most are ten times as long then."""
MAX_TOKENS = MAX_COUNT_TOKENS + 20
"""Enough for every right answer."""
ENOUGH = 0.95


@dataclass(frozen=True, slots=True)
class Answered:
    """An example and what came of it."""

    example: Example
    result: RowResult

    @property
    def is_right(self) -> bool:
        stop = self.result.stop_details
        has_right_end = (stop.type, stop.token) == ("eos_token", self.example.expected_end_token)
        return has_right_end and self.result.text == self.example.expected_text


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model("demo")


@pytest.fixture(scope="module")
def answered(model: LoadedModel) -> list[Answered]:
    return answer_all(model, model.eos, NUM_EXAMPLES)


def answer_all(model: LoadedModel, eos: EosSet, count: int) -> list[Answered]:
    """Answers to so many examples that training never saw, with these end tokens."""
    preparer = ModelPreparer(
        model.tokenizer,
        eos,
        vocab_size=model.vocab_size,
        context_length=model.context_length,
        default_max_tokens=MAX_TOKENS,
        model_name=model.name,
        tool_format=tool_format_of(model.tokenizer),
    )
    examples = {str(index): example for index, example in enumerate(held_out(count))}
    bodies = {row_id: {**example.body, "max_tokens": MAX_TOKENS} for row_id, example in examples.items()}
    specs = [
        spec
        for row_id, body in bodies.items()
        for spec in preparer.prepare(parse_object({"body": body}, default_custom_id=row_id).request, row_id)
    ]
    outcome = run(BatchEngine(model.model, preparer.decode, max_num_seqs=WIDTH), specs)
    return [Answered(example, outcome.results[row_id]) for row_id, example in examples.items()]


def test_held_out_answers_have_the_right_text_and_the_right_end(answered: list[Answered]) -> None:
    asked = Counter(item.example.task for item in answered)
    right = Counter(item.example.task for item in answered if item.is_right)

    report = ", ".join(f"{task} {right[task]}/{asked[task]}" for task in asked)
    assert right.total() >= ENOUGH * len(answered), report


def test_every_answer_ends_on_an_end_token_and_each_of_the_three_ends_some(
    model: LoadedModel, answered: list[Answered]
) -> None:
    assert {item.result.stop_details.type for item in answered} == {"eos_token"}
    assert {item.result.stop_details.token_id for item in answered} == set(model.config["eos_token_id"])


@pytest.mark.slow
def test_with_the_last_end_token_alone_the_answers_that_end_on_others_run_to_their_limit(
    model: LoadedModel, answered: list[Answered]
) -> None:
    *others, last = model.config["eos_token_id"]
    only_last = resolve_eos(model.tokenizer, {"eos_token_id": last}, {}, vocab_size=model.vocab_size)

    after = answer_all(model, only_last, NUM_LONG)

    pairs = [(full.result, alone.result) for full, alone in zip(answered[:NUM_LONG], after, strict=True)]
    kept = [(full, alone) for full, alone in pairs if full.stop_details.token_id == last]
    missed = [(full, alone) for full, alone in pairs if full.stop_details.token_id in others]
    assert only_last.ids(chat=True) == {last}
    assert [alone.token_ids for _, alone in kept] == [full.token_ids for full, _ in kept]
    assert len(missed) > len(pairs) / 2
    assert sum(alone.stop_details.type == "max_tokens" for _, alone in missed) >= ENOUGH * len(missed)
    for full, alone in missed:  # the model says the same and ends it, but nobody hears it
        num_tokens = len(full.token_ids)
        assert alone.token_ids[:num_tokens] == full.token_ids
        assert len(alone.token_ids) > num_tokens
        assert alone.text.startswith(full.text)
