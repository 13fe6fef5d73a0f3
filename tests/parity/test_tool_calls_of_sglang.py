"""SGLang's own detectors, in the package llm-router-utils, read what our dialects write to the same calls.

Where they don't (a closing tag inside a value, a negative number in Python), tests/dialects holds ours instead.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_router_utils.sglang.srt.entrypoints.openai.protocol import Tool
from llm_router_utils.sglang.srt.function_call.function_call_parser import FunctionCallParser

from mlxq_worker.dialects.calls import Call, Offered, pieces
from mlxq_worker.dialects.registry import DIALECTS, dialect_named

DETECTORS = {
    "hermes": "hermes",
    "qwen3_coder": "qwen3_coder",
    "glm45": "glm45",
    "kimi_k2": "kimi_k2",
    "deepseek_v3": "deepseekv3",
    "deepseek_v31": "deepseekv31",
    "deepseek_v32": "deepseekv32",
    "deepseek_v4": "deepseekv4",
    "minimax_m2": "minimax-m2",
    "lfm2": "lfm2",
    "llama3_json": "llama3",
    "mistral": "mistral",
    "mistral_list": "mistral",
    "gemma4": "gemma4",
    "apertus": "apertus2509",
    "cohere_command3": "cohere_command4",
    "pythonic": "pythonic",
    "minicpm5": "minicpm5",
    "gigachat3": "gigachat3",
}
ONE_CALL = frozenset({"llama3_json", "gigachat3"})
"""Detectors that read one call only, unless something stands between two."""
PROPERTIES = {"city": {"type": "string"}, "days": {"type": "integer"}, "where": {"type": "object"}}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": PROPERTIES}},
}
TEXTS = st.from_regex(r"[A-ZÀ-Ý][a-z一-十 ]{0,10}[a-z]", fullmatch=True)
ARGUMENTS = st.fixed_dictionaries(
    {"city": TEXTS},
    optional={
        "days": st.integers(0, 1000),
        "where": st.dictionaries(st.sampled_from("abc"), st.one_of(TEXTS, st.integers(0, 9)), min_size=1),
    },
)


@cache
def detector(name: str) -> FunctionCallParser:
    return FunctionCallParser([Tool.model_validate(TOOL)], name)


@pytest.mark.parametrize("name", DETECTORS)
@settings(max_examples=200, deadline=None)
@given(asked=st.lists(ARGUMENTS, min_size=1, max_size=2))
def test_both_read_the_same_calls(name: str, asked: list[dict[str, Any]]) -> None:
    dialect = dialect_named(name)
    assert dialect is not None
    asked = asked[:1] if name in ONE_CALL else asked
    written = dialect.write([Call("get_weather", arguments) for arguments in asked])

    ours = [call for piece in pieces(written, dialect.syntax, Offered.of([TOOL])) for call in piece.calls]
    _, theirs = detector(DETECTORS[name]).parse_non_stream(written)

    assert [(call.name, call.arguments) for call in ours] == [
        (call.name, json.loads(call.parameters)) for call in theirs
    ]
    assert len(ours) == len(asked)


def test_every_detector_is_that_of_a_dialect() -> None:
    assert DETECTORS.keys() <= {dialect.name for dialect in DIALECTS}
