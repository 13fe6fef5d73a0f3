"""Ids, numbers and URLs are read as tables and other services' scripts write them, and what is dropped is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlxq.contract import CHAT, COMPLETIONS
from mlxq.errors import RequestError
from mlxq.requests import openai

USER = {"role": "user", "content": "hi"}
CHAT_BODY = {"messages": [USER]}


def parse(line: dict[str, Any], *, allow_unknown: bool = False) -> openai.ParsedLine:
    return openai.parse_object(line, default_custom_id="default", allow_unknown=allow_unknown)


@pytest.mark.parametrize("name", ["custom_id", "id"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [(17, "17"), (17.0, "17"), (0, "0"), (-3, "-3"), ("017", "017"), (np.int64(17), "17"), (np.float64(17), "17")],
)
def test_an_id_that_is_a_number_is_its_digits(name: str, value: Any, expected: str) -> None:
    parsed = parse({name: value, "prompt": "x"})

    assert (parsed.request.custom_id, parsed.payload["custom_id"]) == (expected, expected)


def test_an_id_and_its_other_name_may_be_written_in_two_ways() -> None:
    assert parse({"custom_id": 17, "id": "17", "prompt": "x"}).request.custom_id == "17"


@pytest.mark.parametrize("value", [True, 17.5, [17], {"a": 1}, ""])
def test_an_id_that_is_no_text_and_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(RequestError) as refused:
        parse({"custom_id": value, "prompt": "x"})

    assert refused.value.param == "custom_id"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("max_tokens", 4.0, 4),
        ("top_k", 20.0, 20),
        ("seed", 7.0, 7),
        ("min_tokens", 0.0, 0),
        ("max_tokens", np.int32(4), 4),
    ],
)
def test_a_whole_number_with_a_point_is_an_integer(name: str, value: Any, expected: int) -> None:
    sampling = parse({"body": {"prompt": "x", "max_tokens": 9, name: value}}).request.sampling

    assert (getattr(sampling, name), type(getattr(sampling, name))) == (expected, int)


def test_lists_and_numbers_of_numpy_are_those_of_json() -> None:
    body = {"prompt": np.array([1, 2, 3]), "temperature": np.float32(0.5), "ignore_eos": np.bool_(True)}

    request = parse({"body": body}).request

    assert (request.prompt, request.sampling.temperature, request.sampling.ignore_eos) == ((1, 2, 3), 0.5, True)


@pytest.mark.parametrize(
    "url",
    [
        "/v1/chat/completions/",
        "v1/chat/completions",
        "/chat/completions",
        "chat/completions",
        "https://api.openai.com/v1/chat/completions",
        "http://localhost:8000/v1/chat/completions/",
        "https://x.openai.azure.com/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21",
    ],
)
def test_an_endpoint_is_read_however_its_url_is_written(url: str) -> None:
    parsed = parse({"url": url, "method": "post", "body": CHAT_BODY})

    assert (parsed.request.endpoint, parsed.payload["url"]) == (CHAT, CHAT)


def test_the_url_of_a_completion_is_not_that_of_a_chat() -> None:
    assert parse({"url": "v1/completions/", "prompt": "x"}).request.endpoint == COMPLETIONS
    with pytest.raises(RequestError) as refused:
        parse({"url": "https://api.openai.com/v1/completions", "body": CHAT_BODY})

    assert refused.value.param == "url"


@pytest.mark.parametrize(
    "url", ["/v1/responses", "https://api.openai.com/v1/embeddings", "/v1", "", "completion", 7, "//["]
)
def test_a_url_of_another_endpoint_is_refused(url: Any) -> None:
    with pytest.raises(RequestError) as refused:
        parse({"url": url, "body": CHAT_BODY})

    assert (refused.value.param, refused.value.code) == ("url", "out_of_range")


ASKS_HOW = {
    "service_tier": "flex",
    "verbosity": "low",
    "store": True,
    "stream": True,
    "stream_options": {"include_usage": True},
    "priority": 5,
    "prediction": {"type": "content", "content": "x"},
    "request_id": "r",
    "cache_salt": "s",
}


@pytest.mark.parametrize("name", ASKS_HOW)
def test_what_says_how_to_serve_a_request_can_be_dropped_and_is_named(name: str) -> None:
    body = {**CHAT_BODY, name: ASKS_HOW[name]}

    with pytest.raises(RequestError, match="--allow-unknown-params") as refused:
        parse({"body": body})
    parsed = parse({"body": body}, allow_unknown=True)

    assert refused.value.param == name
    assert (parsed.dropped, parsed.payload["body"]) == ((name,), CHAT_BODY)


def test_what_says_what_to_answer_is_refused_even_where_unknown_fields_are_dropped() -> None:
    for name, value in {"suffix": "x", "audio": {"voice": "a"}, "modalities": ["audio"]}.items():
        with pytest.raises(RequestError) as refused:
            parse({"body": {**CHAT_BODY, name: value}}, allow_unknown=True)
        assert refused.value.param == name


def test_all_that_is_dropped_is_named_once_and_by_its_place() -> None:
    message = {**USER, "tone": "kind"}
    line = {"priority": 1, "note": "n", "body": {"messages": [message, message], "colour": "red", "nothing": None}}

    assert parse(line, allow_unknown=True).dropped == ("priority", "note", "messages.tone", "colour")


def test_a_field_that_asks_for_nothing_counts_as_dropped_by_nobody() -> None:
    body = {**CHAT_BODY, "service_tier": "auto", "store": False, "stream": None}

    assert parse({"body": body}, allow_unknown=True).dropped == ()
