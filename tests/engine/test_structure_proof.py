"""Answers held to random schemas fit them, forced calls parse, and free rows beside them don't notice.

On the demo model and on a tiny random one, which writes nothing sensible unless a grammar makes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from random import Random
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from tests.support.engine_runs import run
from tests.support.random_schemas import Schema, random_schema
from tests.support.row_specs import row_spec
from tests.support.small_tokenizers import real_tokenizer
from tests.support.thorough import sample_of
from tests.support.tiny_models import build

from mlxq.contract import Request, Sampling, Structure, ToolChoice
from mlxq_worker.dialects.tool_format import ToolFormat, tool_format_of
from mlxq_worker.engine.api import RowResult, RowSpec
from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.model.load import load_model
from mlxq_worker.text.answer_parts import AnswerReader
from mlxq_worker.text.structure import StructureCompiler

SCHEMAS = sample_of(200, 60)
MAX_TOKENS = 120
ENOUGH = 0.5
"""The part of the answers that must have come to an end by themselves, for the proof to say something."""
TAGGED_TEMPLATE = "<tool_call> tool_call.name"


@dataclass
class Scene:
    """A model that can be held to structures."""

    model: Any
    tokenizer: Any
    eos_ids: frozenset[int]
    vocab_size: int

    @cached_property
    def tool_format(self) -> ToolFormat | None:
        return tool_format_of(self.tokenizer)

    @cached_property
    def compiler(self) -> StructureCompiler:
        return StructureCompiler(self.tokenizer, self.eos_ids, self.vocab_size, self.tool_format)

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def row(self, index: int, request: Request | None = None) -> RowSpec:
        """A row at a high temperature; held to what the request asks, if there is one."""
        prompt = self.tokenizer.encode(f"Count from {index} to {index + 5}:", add_special_tokens=False)
        return row_spec(
            row_id=str(index),
            prompt_ids=tuple(prompt),
            max_tokens=MAX_TOKENS,
            end_tokens=dict.fromkeys(self.eos_ids, "<end>"),
            eos_ids=self.eos_ids,
            seed=index,
            temperature=1.2,
            constraint=self.compiler.constraint(request, self.eos_ids) if request else None,
        )

    def run(self, specs: Sequence[RowSpec]) -> dict[str, RowResult]:
        return run(BatchEngine(self.model, self.decode, max_num_seqs=64), specs).results


@cache
def demo() -> Scene:
    loaded = load_model("demo")
    return Scene(loaded.model, loaded.tokenizer, loaded.eos.ids(chat=True), loaded.vocab_size)


@cache
def random_llama() -> Scene:
    """Byte by byte, with two end tokens and some ids that are no token."""
    tokenizer = real_tokenizer(chat_template=TAGGED_TEMPLATE)
    return Scene(build("llama", vocab_size=270), tokenizer, frozenset({257, 260}), 270)


SCENES = pytest.mark.parametrize("scene", [demo, random_llama])


def request(schema: Schema | None = None, **fields: Any) -> Request:
    structure = None if schema is None else Structure(kind="json_schema", value=schema, param="response_format")
    return Request(
        custom_id="r",
        endpoint="/v1/chat/completions",
        sampling=Sampling(),
        content_hash="",
        messages=(),
        structure=structure,
        **fields,
    )


def ended(results: dict[str, RowResult]) -> dict[str, RowResult]:
    """Those that no limit cut off; enough for the test to say something."""
    assert {result.stop_details.type for result in results.values()} <= {"eos_token", "max_tokens"}
    whole = {row_id: result for row_id, result in results.items() if result.stop_details.type == "eos_token"}
    assert len(whole) >= ENOUGH * len(results), f"{len(whole)} of {len(results)} ended"
    return whole


@pytest.mark.slow
@pytest.mark.thorough
@SCENES
def test_every_answer_that_ends_by_itself_fits_its_random_schema(scene: Callable[[], Scene]) -> None:
    made, random = scene(), Random(20)
    schemas = [random_schema(random) for _ in range(SCHEMAS)]

    results = made.run([made.row(index, request(schema)) for index, schema in enumerate(schemas)])

    for row_id, result in ended(results).items():
        schema = schemas[int(row_id)]
        Draft202012Validator.check_schema(schema)
        Draft202012Validator(schema).validate(json.loads(result.text))


@pytest.mark.slow
@SCENES
def test_free_rows_get_the_same_tokens_beside_rows_that_are_held(scene: Callable[[], Scene]) -> None:
    made, random = scene(), Random(21)
    free = [made.row(index) for index in range(12)]
    held = [made.row(100 + index, request(random_schema(random))) for index in range(12)]

    alone = made.run(free)
    mixed = made.run([spec for pair in zip(free, held, strict=True) for spec in pair])

    assert {row_id: mixed[row_id].token_ids for row_id in alone} == {i: each.token_ids for i, each in alone.items()}


@pytest.mark.slow
@pytest.mark.thorough
@SCENES
@pytest.mark.parametrize("parallel", [False, True])
def test_forced_calls_always_parse_and_fit(scene: Callable[[], Scene], parallel: bool) -> None:
    made, random = scene(), Random(22)
    schemas = {f"tool_{index}": random_schema(random) for index in range(3)}
    tools = tuple({"type": "function", "function": {"name": n, "parameters": s}} for n, s in schemas.items())
    asked = request(tools=tools, tool_choice=ToolChoice(mode="required", parallel=parallel))
    specs = [replace(made.row(index, asked), max_tokens=2 * MAX_TOKENS) for index in range(sample_of(40, 16))]
    reader = AnswerReader(made.tokenizer, made.decode, made.tool_format)

    results = made.run(specs)

    for row_id, result in ended(results).items():
        parts = reader.read(asked, specs[int(row_id)], result)
        assert (parts.finish_reason, parts.text) == ("tool_calls", "")
        assert parallel or len(parts.tool_calls) == 1
        for call in parts.tool_calls:
            Draft202012Validator(schemas[call.name]).validate(json.loads(call.arguments))
