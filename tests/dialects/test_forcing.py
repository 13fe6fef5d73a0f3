"""Demanded calls are forced in every dialect that a grammar can say, and what it can't say is refused by name."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

import numpy as np
import pytest
from tests.support.scripted_models import byte_level_tokenizer
from transformers import PreTrainedTokenizerFast

from mlxq.contract import Request, Sampling, ToolChoice
from mlxq.errors import RequestError
from mlxq_worker.dialects.dialect import Dialect
from mlxq_worker.dialects.registry import DIALECTS
from mlxq_worker.dialects.tool_calls import ToolAnswer, split_answer
from mlxq_worker.dialects.tool_format import ToolFormat
from mlxq_worker.engine.constraint import Constraint
from mlxq_worker.text.structure import StructureCompiler

FORCED = [dialect for dialect in DIALECTS if dialect.forced is not None]
EACH = pytest.mark.parametrize("dialect", FORCED, ids=lambda dialect: dialect.name)
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer"}, "note": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = (
    {"type": "function", "function": {"name": "get_weather", "parameters": CITY, "strict": True}},
    {"type": "function", "function": {"name": "now"}},
)


@cache
def tokenizer(name: str) -> Any:
    """With the dialect's marker, where it has one, as a token."""
    marker = next(dialect for dialect in DIALECTS if dialect.name == name).syntax.marker
    raw = byte_level_tokenizer(["<end>", *([marker] if marker.startswith(("<", "[")) else [])], [])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>")


@cache
def compiler(name: str) -> StructureCompiler:
    """One for all tests of a dialect, since each has a process of its own that tries grammars out."""
    dialect = next(each for each in DIALECTS if each.name == name)
    model = tokenizer(name)
    return StructureCompiler(model, frozenset({model.eos_token_id}), len(model), ToolFormat.of(dialect, model))


def compiled(dialect: Dialect, **fields: Any) -> tuple[Constraint, Any]:
    model = tokenizer(dialect.name)
    made = compiler(dialect.name).constraint(request(**fields), frozenset({model.eos_token_id}))
    assert made is not None
    return made, model


def request(**fields: Any) -> Request:
    return Request(
        custom_id="r",
        endpoint="/v1/chat/completions",
        sampling=Sampling(),
        content_hash="",
        messages=(),
        **{"tools": TOOLS, **fields},
    )


LONGEST = 2000
QUOTES = ('"', "'")
FREE = 150
"""So many allowed bytes are free text, which chance alone would hardly ever end."""


def random_answer(dialect: Dialect, constraint: Constraint, model: Any, seed: int, start: str = "") -> str:
    """An answer that the constraint allows, behind a given start; ended as soon as it may be."""
    choose = random.Random(seed)
    closing = dialect.forced.tags.closing if dialect.forced and dialect.forced.tags else '"'
    ids = model.encode(start, add_special_tokens=False)
    for token_id in ids:
        constraint.advance(token_id)
    planned: list[int] = []
    while len(ids) < LONGEST:
        bits = np.unpackbits(np.frombuffer(constraint.allowed_ids(), np.uint8), bitorder="little")
        allowed = [each for each in np.flatnonzero(bits).tolist() if each < len(model)]
        if model.eos_token_id in allowed and len(ids) > len(start):
            return str(model.decode(ids))
        if not planned and len(allowed) > FREE:
            last = model.decode(ids[-1:])
            planned = model.encode(f"a<b{closing or (last if last in QUOTES else QUOTES[0])}", add_special_tokens=False)
        ids.append(
            planned.pop(0) if planned else choose.choice([each for each in allowed if each != model.eos_token_id])
        )
        assert ids[-1] in allowed, model.decode(ids)
        constraint.advance(ids[-1])
    raise AssertionError(f"it never ends: {model.decode(ids)[:200]}")


def read(dialect: Dialect, text: str, tools: Any = TOOLS) -> ToolAnswer:
    answer = split_answer(text, tools, ToolFormat.of(dialect, tokenizer(dialect.name)))
    assert answer is not None, text
    return answer


@EACH
def test_a_demanded_call_fits_its_tool_and_is_read_back(dialect: Dialect) -> None:
    for seed in range(4):
        constraint, model = compiled(dialect, tool_choice=ToolChoice(mode="required", parallel=False))

        answer = read(dialect, random_answer(dialect, constraint, model, seed))

        [call] = answer.calls
        arguments = json.loads(call.arguments)
        assert answer.text == ""
        assert call.name == "now" or arguments["city"] in ("Paris", "Rome")
        assert isinstance(arguments.get("days", 0), int)


@EACH
def test_a_named_tool_is_called_once_and_no_other(dialect: Dialect) -> None:
    constraint, model = compiled(dialect, tool_choice=ToolChoice(mode="required", name="get_weather"))

    [call] = read(dialect, random_answer(dialect, constraint, model, seed=1)).calls

    assert call.name == "get_weather"


def _told_from_text(dialect: Dialect) -> bool:
    return not dialect.is_channelled


@pytest.mark.parametrize("dialect", [each for each in FORCED if _told_from_text(each)], ids=lambda each: each.name)
def test_a_strict_tools_call_fits_amid_free_text(dialect: Dialect) -> None:
    marker = dialect.syntax.marker
    constraint, model = compiled(dialect)
    assert dialect.forced is not None
    start = marker if dialect.forced.begins.startswith(marker) else dialect.forced.begins
    begun = (
        f"I look it up. {start}"
        if start
        else (dialect.forced.before_all + dialect.forced.before).format(name="get_weather")
    )

    answer = read(dialect, random_answer(dialect, constraint, model, seed=2, start=begun))

    assert all(call.name == "now" or json.loads(call.arguments)["city"] in ("Paris", "Rome") for call in answer.calls)


@pytest.mark.parametrize("dialect", [each for each in FORCED if not _told_from_text(each)], ids=lambda each: each.name)
def test_a_strict_tool_is_refused_where_nothing_marks_its_calls(dialect: Dialect) -> None:
    with pytest.raises(RequestError) as refused:
        compiled(dialect)

    assert refused.value.param == "tools[0].function.strict"


def test_calls_can_be_demanded_in_every_dialect() -> None:
    assert [dialect.name for dialect in DIALECTS if dialect.forced is None] == []


TAGGED = [each for each in FORCED if each.forced and each.forced.tags]
WITH_TEXTS = [each for each in TAGGED if each.forced and each.forced.tags and each.forced.tags.closing]
"""Those whose texts are not JSON."""


WITH_PATTERN = {"properties": {"a": {"type": "string", "pattern": "x+"}}, "required": ["a"]}
WITH_LENGTH = {"properties": {"a": {"type": "string", "maxLength": 3}}, "required": ["a"]}
WITH_UNION = {"anyOf": [{"properties": {"a": {"type": "string"}}}]}
WITH_STRANGER = {"properties": {}, "required": ["b"]}


@pytest.mark.parametrize(
    ("dialect", "schema", "word"),
    [
        *((each, WITH_PATTERN, "pattern") for each in WITH_TEXTS),
        *((each, WITH_LENGTH, "maxLength") for each in WITH_TEXTS),
        *((each, WITH_UNION, "anyOf") for each in TAGGED),
        *((each, WITH_STRANGER, "b") for each in TAGGED),
    ],
    ids=lambda value: value.name if isinstance(value, Dialect) else str(value) if isinstance(value, str) else "",
)
def test_what_tags_cannot_be_held_to_is_refused_by_name(dialect: Dialect, schema: dict[str, Any], word: str) -> None:
    tools = ({"type": "function", "function": {"name": "f", "parameters": {"type": "object", **schema}}},)

    with pytest.raises(RequestError, match=word) as refused:
        compiled(dialect, tools=tools, tool_choice=ToolChoice(mode="required"))

    assert refused.value.param == "tools[0].function.parameters"


@pytest.mark.parametrize("dialect", TAGGED, ids=lambda each: each.name)
def test_values_of_other_types_are_json_between_tags(dialect: Dialect) -> None:
    properties = {
        "where": {"type": "object", "properties": {"x": {"type": "integer"}}, "additionalProperties": False},
        "flag": {"type": "boolean"},
        "maybe": {"type": ["string", "null"]},
    }
    parameters = {"type": "object", "properties": properties, "required": ["where", "flag", "maybe"]}
    tools = ({"type": "function", "function": {"name": "f", "parameters": parameters}},)
    constraint, model = compiled(dialect, tools=tools, tool_choice=ToolChoice(mode="required", parallel=False))

    [call] = read(dialect, random_answer(dialect, constraint, model, seed=3), tools).calls

    arguments = json.loads(call.arguments)
    assert [type(arguments[key]) for key in ("where", "flag")] == [dict, bool]
    assert isinstance(arguments["maybe"], str | None)
