"""What a row that died says: which fields of its request may have killed it."""

from __future__ import annotations

from typing import Any

import pytest

from mlxq.requests.openai import parse_object
from mlxq_worker.prepared import row_error

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "clock", "strict": True, "parameters": SCHEMA}}
USER = {"messages": [{"role": "user", "content": "x"}]}

BODIES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a schema": (
        {"prompt": "x", "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}},
        ["response_format"],
    ),
    "a choice and a least length": (
        {"prompt": "x", "structured_outputs": {"choice": ["yes"]}, "min_tokens": 20},
        ["structured_outputs.choice", "min_tokens", "complete before min_tokens"],
    ),
    "a grammar and allowed ids": (
        {"prompt": "x", "structured_outputs": {"regex": "a+"}, "allowed_token_ids": [1], "bad_words": ["a"]},
        ["structured_outputs.regex, allowed_token_ids and bad_words", "fits no token that the others leave"],
    ),
    "no structure": (
        {"prompt": "x", "allowed_token_ids": [1], "bad_words": ["a"]},
        ["allowed_token_ids and bad_words"],
    ),
    "a demanded call": ({**USER, "tools": [TOOL], "tool_choice": "required"}, ["tool_choice", "strict tools"]),
    "nothing": ({"prompt": "x"}, ["what the request allows and forbids"]),
}


@pytest.mark.parametrize("case", BODIES)
def test_a_row_without_a_token_to_go_on_with_names_the_fields_that_left_none(case: str) -> None:
    body, names = BODIES[case]
    error = row_error("no_token_allowed", parse_object(body, default_custom_id="a").request)
    assert error.code == "no_token_allowed"
    for name in names:
        assert name in error.message
    unnamed = {"response_format", "structured_outputs", "min_tokens", "bad_words", "tool_choice"} - body.keys()
    assert not [name for name in unnamed if name in error.message]
