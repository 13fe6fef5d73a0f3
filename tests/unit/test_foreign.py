"""Lines for other services are named as such, suggestions are near misses only, and what is no number is named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlxq.errors import RequestError
from mlxq.requests.openai import parse_line


def refusal(line: dict[str, Any] | str) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_line(line if isinstance(line, str) else json.dumps(line), default_custom_id="a")
    return caught.value


USER = {"role": "user", "content": "Hello"}
FOREIGN: dict[str, tuple[dict[str, Any], str]] = {
    "Gemini's API": ({"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]}, "contents"),
    "datatrove": ({"text": "A document.", "id": "<urn:1>", "metadata": {"url": "x"}}, "text"),
    "ShareGPT": ({"id": "1", "conversations": [{"from": "human", "value": "Hello"}]}, "conversations"),
    "Alpaca": ({"instruction": "Translate", "input": "Hallo", "output": "Hello"}, "instruction"),
    "Hugging Face": ({"inputs": "Hello", "parameters": {"max_new_tokens": 9}}, "inputs"),
    "questions": ({"question": "Who?", "answer": "I"}, "question"),
    "responses": (
        {"custom_id": "a", "method": "POST", "body": {"model": "gpt-4o", "input": "Hello"}},
        "input",
    ),
}


@pytest.mark.parametrize("whose", FOREIGN)
def test_the_shape_of_another_service_is_recognised_by_name(whose: str) -> None:
    line, param = FOREIGN[whose]
    error = refusal(line)
    assert (error.code, error.param) == ("foreign_format", param)
    assert whose.partition("'")[0].lower() in error.message.lower()
    assert param in error.message
    assert "did you mean" not in error.message


def test_a_line_of_ours_may_have_a_field_of_theirs_refused_as_any_other() -> None:
    error = refusal({"prompt": "x", "text": "y"})
    assert (error.code, error.param) == ("unknown_field", "text")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("temprature", "temperature"),
        ("max_token", "max_tokens"),
        ("maxTokens", "max_tokens"),
        ("Max-Completion-Tokens", "max_completion_tokens"),
        ("topP", "top_p"),
        ("sotp", "stop"),
        ("propmt", "prompt"),
        ("frequency_penality", "frequency_penalty"),
        ("message", "messages"),
    ],
)
def test_a_near_miss_is_suggested(name: str, meant: str) -> None:
    assert refusal({"custom_id": "a", "body": {name: 1}}).message == f"unknown field {name}; did you mean {meant}?"


@pytest.mark.parametrize(
    "name",
    [
        "input",
        "system",
        "question",
        "max_new_tokens",
        "answer",
        "context",
        "temp",
        "parameters",
        "texts",
        "q",
        "",
    ],
)
def test_what_is_no_near_miss_is_not_suggested(name: str) -> None:
    assert "did you mean" not in refusal({"prompt": "x", name: 1}).message


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("line", ['{"prompt": "x", "temperature": %s}', '{"body": {"prompt": "NaN", "n": [1, %s]}}'])
def test_what_is_no_number_is_named(line: str, word: str) -> None:
    error = refusal(line % word)
    assert (error.code, error.message) == (
        "invalid_json",
        f"this is not valid JSON: {word} is no number there; leave the field out, or write null",
    )


def test_other_bad_json_that_has_the_word_keeps_its_own_reason() -> None:
    assert "is not valid JSON" in refusal('{"prompt": "NaN", oops').message
