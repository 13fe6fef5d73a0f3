"""`from mlxq import ...`: what is public, where it comes from, and how a program builds a request."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

import mlxq
from mlxq import RequestError, errors, request
from mlxq.requests.openai import parse_line

MESSAGES = [{"role": "user", "content": "Say hello"}]


def refusal(**arguments: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        request(**arguments)
    return caught.value


@pytest.mark.parametrize("name", mlxq.__all__)
def test_every_public_name_is_there_and_is_listed(name: str) -> None:
    assert getattr(mlxq, name).__name__ == name
    assert name in dir(mlxq)


def test_every_error_is_public() -> None:
    ours = {name for name, value in vars(errors).items() if isinstance(value, type)}

    assert ours <= set(mlxq.__all__)


def test_a_name_that_is_not_public_is_an_attribute_error_and_modules_can_still_be_imported() -> None:
    with pytest.raises(AttributeError, match="'mlxq' has no attribute 'Nonsense'"):
        _ = mlxq.Nonsense  # type: ignore[attr-defined]

    assert importlib.import_module("mlxq.keys").DEFAULT_QUEUE


def test_a_prompt_makes_a_completion_and_messages_make_a_chat() -> None:
    completion = request(prompt="Say hello", custom_id="a", max_tokens=5).request
    chat = request(messages=MESSAGES, custom_id="b", temperature=0).request

    assert (completion.custom_id, completion.prompt, completion.sampling.max_tokens) == ("a", "Say hello", 5)
    assert (chat.custom_id, chat.messages, chat.sampling.temperature) == ("b", tuple(MESSAGES), 0)


def test_a_prompt_may_be_token_ids_in_any_sequence() -> None:
    assert request(prompt=(1, 2, 3)).request.prompt == (1, 2, 3)


def test_a_built_request_is_the_one_that_the_same_line_in_a_file_is() -> None:
    line = b'{"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "hi", "stop": ["."], "seed": 1}}'

    assert request(prompt="hi", custom_id="a", stop=["."], seed=1) == parse_line(line, default_custom_id="d")


def test_requests_without_an_id_get_one_each() -> None:
    ids = {request(prompt="hi").request.custom_id for _ in range(100)}

    assert len(ids) == 100


def test_a_field_that_is_none_counts_as_not_given() -> None:
    assert request(prompt="hi", custom_id="a", max_tokens=None) == request(prompt="hi", custom_id="a")


@pytest.mark.parametrize(
    ("arguments", "param", "code"),
    [
        ({"prompt": "hi", "temprature": 1}, "temprature", "unknown_field"),
        ({"prompt": "hi", "body": {"prompt": "hi"}}, "body", "unknown_field"),
        ({"prompt": "hi", "default_custom_id": "a"}, "default_custom_id", "unknown_field"),
        ({"prompt": "hi", "max_tokens": "5"}, "max_tokens", "invalid_type"),
        ({"prompt": "hi", "custom_id": 5.5}, "custom_id", "invalid_type"),
        ({"prompt": "hi", "custom_id": ""}, "custom_id", "out_of_range"),
        ({"prompt": "hi", "messages": MESSAGES}, "prompt", "invalid_value"),
        ({"messages": [{"role": "nobody", "content": "hi"}]}, "messages[0].role", "out_of_range"),
        ({}, "messages", "missing_field"),
        ({"prompt": "hi", "stop": {"a", "b"}}, "stop", "invalid_json"),
        ({"prompt": "hi", "temperature": float("nan")}, "temperature", "invalid_json"),
        ({"prompt": "\ud800"}, "prompt", "invalid_json"),
        ({"prompt": b"hi"}, "prompt", "invalid_json"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_by_the_name_of_its_field(
    arguments: dict[str, Any], param: str, code: str
) -> None:
    error = refusal(**arguments)

    assert (error.param, error.code) == (param, code)
    assert param in str(error)
