"""Whatever goes in, a request or a `RequestError` comes out, and a request survives the way to the worker."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.thorough import sample_of

from mlxq.contract import CHAT
from mlxq.errors import RequestError
from mlxq.requests import openai
from mlxq.requests.conversation import MESSAGE_FIELDS
from mlxq.requests.fields import FIELDS, REPETITION_DETECTION_FIELDS
from mlxq.requests.openai import LINE_FIELDS, ParsedLine
from mlxq.requests.structures import JSON_SCHEMA_FIELDS, RESPONSE_FORMAT_FIELDS, STRUCTURED_OUTPUTS_FIELDS
from mlxq.results import read_back

pytestmark = pytest.mark.thorough

quick = settings(max_examples=sample_of(1000, 100), deadline=None, suppress_health_check=[HealthCheck.too_slow])

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-2, 2)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["text", "function", "user", "assistant", "tool", "POST", CHAT, 10**400, 2**63])
)
INNER = (*RESPONSE_FORMAT_FIELDS, *JSON_SCHEMA_FIELDS, *STRUCTURED_OUTPUTS_FIELDS, *REPETITION_DETECTION_FIELDS)
names = st.sampled_from(
    [*FIELDS, *MESSAGE_FIELDS, *LINE_FIELDS, *INNER, "type", "text", "function", "name", "7"]
) | st.text(max_size=5)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=10,
)
parts = st.fixed_dictionaries({}, optional={"type": st.just("text") | values, "text": st.text() | values})
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "developer"]) | values},
    optional={
        **{name: values for name in MESSAGE_FIELDS if name != "role"},
        "content": st.text() | st.lists(parts, max_size=2) | values,
    },
)


def merged(dicts: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    return {name: value for one in dicts for name, value in one.items()}


prompts = st.fixed_dictionaries({"prompt": st.text() | values}) | st.fixed_dictionaries(
    {"messages": st.lists(messages, max_size=3)}
)
fields = st.dictionaries(st.sampled_from(sorted(FIELDS)), values, max_size=4)
bodies = st.tuples(fields, prompts).map(merged)
lines = bodies | st.fixed_dictionaries({"body": bodies}, optional=dict.fromkeys(LINE_FIELDS[:4], values)) | values

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=3)
finite = st.floats(allow_nan=False, allow_infinity=False)
schemas = st.fixed_dictionaries({"type": st.just("object")}, optional={"properties": st.dictionaries(texts, st.none())})
sampled = {
    "temperature": st.floats(0, 1e308),
    "top_p": st.floats(0.01, 1),
    "top_k": st.integers(-1, 9),
    "stop": st.lists(texts, max_size=3),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2) | st.integers(-2, 2),
    "repetition_penalty": st.floats(0.01, 100),
    "repetition_detection": st.builds(
        lambda low, more, count: {"min_pattern_size": low, "max_pattern_size": low + more, "min_count": count},
        st.integers(0, 9),
        st.integers(0, 9),
        st.integers(2, 9),
    ),
    "logit_bias": st.dictionaries(st.integers(0, 2**31 - 1).map(str), st.floats(-100, 100), max_size=3),
    "bad_words": st.lists(texts, max_size=3),
    "thinking_token_budget": st.integers(-1, 100),
    "allowed_token_ids": st.lists(st.integers(0, 99), min_size=1, max_size=3),
    "logprobs": st.booleans(),
    "prompt_logprobs": st.integers(0, 20),
}
anyhow = {
    "n": st.integers(1, 8),
    "seed": st.integers(-(2**63), 2**64 - 1),
    "min_tokens": st.integers(0, 3),
    "max_tokens": st.integers(3, 9),
    "ignore_eos": st.booleans(),
    "return_token_ids": st.booleans(),
    "metadata": st.dictionaries(st.text(st.characters(codec="utf-8")), finite, max_size=3),
    "user": st.none() | texts,
}
structures = st.fixed_dictionaries(
    {"response_format": st.sampled_from([{"type": "text"}, {"type": "json_object", "json_schema": None}])}
) | st.fixed_dictionaries(
    {
        "structured_outputs": st.fixed_dictionaries({"json": schemas})
        | st.fixed_dictionaries({"regex": texts, "choice": st.none()})
        | st.fixed_dictionaries({"choice": st.lists(texts, min_size=1, max_size=3)})
    }
)
called = st.fixed_dictionaries(
    {
        "tools": st.just([{"type": "function", "function": {"name": "f", "strict": True}}]),
        "tool_choice": st.sampled_from(["none", "required", {"type": "function", "function": {"name": "f"}}]),
    },
    optional={"parallel_tool_calls": st.booleans(), "reasoning_effort": st.sampled_from(["none", "low", "max"])},
)
beams = st.fixed_dictionaries(
    {"use_beam_search": st.just(True), "beam_width": st.integers(8, 32)},
    optional={
        "length_penalty": st.floats(-10, 10),
        "early_stopping": st.sampled_from([True, False, "never"]),
        "temperature": st.sampled_from([0, 1, 1.0]),
    },
)
nothing = st.just({})
good_prompts = st.fixed_dictionaries(
    {"prompt": st.text(st.characters(codec="utf-8"), min_size=1) | st.lists(st.integers(0, 99), min_size=1)}
)
good_chats = st.just({"messages": [{"role": "user", "content": "hi"}]})
samplings = st.fixed_dictionaries({}, optional={**sampled, **anyhow})
good_lines = (
    st.tuples(samplings, good_prompts, structures | nothing)
    | st.tuples(samplings, good_chats, structures | called | nothing)
    | st.tuples(st.fixed_dictionaries({}, optional=anyhow), good_prompts | good_chats, beams)
).map(merged)
GOOD_LINE = json.dumps(
    {
        "custom_id": "r1",
        "method": "POST",
        "url": CHAT,
        "body": {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "é\n"}]}],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}, "strict": True}}],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "repetition_detection": {"max_pattern_size": 9, "min_count": 3},
            "logit_bias": {"7": -1.5},
            "logprobs": True,
            "top_logprobs": 3,
            "n": 2,
            "stop": ["a"],
            "seed": -1,
            "temperature": 0.5,
        },
    }
).encode()


def parsed(data: bytes, **options: Any) -> ParsedLine | None:
    """`None` for a refusal. Any other exception fails the test."""
    try:
        return openai.parse_line(data, default_custom_id="d", **options)
    except RequestError as error:
        check_refusal(error)
        return None


def check_refusal(error: RequestError) -> None:
    assert error.message
    assert len(error.message) < 300
    assert 400 <= error.status_code < 500


def assert_worker_agrees(line: ParsedLine) -> None:
    """All but what was dropped on the way in, which never gets as far as the worker."""
    travelled = json.loads(json.dumps(line.payload))
    assert openai.parse_object(travelled, default_custom_id="other") == replace(line, dropped=())


@quick
@given(lines, st.booleans())
def test_any_json_is_accepted_or_refused(line: Any, allow_unknown: bool) -> None:
    data = json.dumps(line).encode()
    accepted = parsed(data, allow_unknown=allow_unknown)
    if accepted is not None:
        assert_worker_agrees(accepted)


@quick
@given(st.data())
def test_a_mutated_line_is_accepted_or_refused(data: st.DataObject) -> None:
    # given a good line
    line = bytearray(GOOD_LINE)

    # when some of its bytes are replaced, removed or doubled
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(line) - 1))
        end = data.draw(st.integers(start, min(start + 8, len(line))))
        line[start:end] = data.draw(st.binary(max_size=3) | st.just(bytes(line[start:end]) * 2))
        if not line:
            break

    # then it is a line that the worker reads the same way, or it is refused
    accepted = parsed(bytes(line))
    if accepted is not None:
        assert_worker_agrees(accepted)


@quick
@given(st.binary(max_size=50))
def test_any_bytes_are_accepted_or_refused(data: bytes) -> None:
    parsed(data)
    openai.read_custom_id(data)


@quick
@given(good_lines)
def test_a_good_line_is_accepted_and_travels_unchanged(line: Any) -> None:
    accepted = parsed(json.dumps(line).encode())
    assert accepted is not None
    assert_worker_agrees(accepted)


@quick
@given(values)
def test_any_python_object_is_accepted_or_refused(value: Any) -> None:
    with pytest.raises(RequestError):
        openai.parse_object({"prompt": "x", "top_k": [value]}, default_custom_id="d")


@quick
@given(values)
def test_the_readers_of_output_lines_never_fail(value: Any) -> None:
    read_back.custom_id_of(value)
    read_back.is_success(value)
    read_back.content_hash_of(value)
    read_back.stop_details_of(value)
    read_back.error_code_of(value)
    read_back.usage_of(value)
    for line in (value, {"response": {"body": {"choices": value}}}, {"response": {"body": {"choices": [value]}}}):
        read_back.texts_of(line)
        for choice in read_back.choices_of(line):
            read_back.calls_of(choice)
