"""Requests as vLLM's run-batch, OpenAI's Batch API and mlx_lm.server document them: each is accepted or refused, as
the tables of docs/fields.md say, and what is accepted is not left aside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlxq.contract import Request
from mlxq.errors import RequestError
from mlxq.requests import openai
from mlxq.requests.fields import FIELDS

CORPUS = Path(__file__).parents[1] / "corpus"


def read_corpus() -> list[Any]:
    """(line, field that it is refused for), named after the file and what it is about."""
    return [
        pytest.param(entry["line"], entry["refused"], id=f"{path.stem}: {entry['about']}")
        for path in sorted(CORPUS.glob("*.jsonl"))
        for entry in map(json.loads, path.read_text(encoding="utf-8").splitlines())
    ]


def body_of(line: dict[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = line.get("body", line)
    return body


@pytest.mark.parametrize(("line", "refused"), read_corpus())
def test_a_documented_request_is_accepted_or_refused_by_field(line: dict[str, Any], refused: str | None) -> None:
    if refused is None:
        parsed = openai.parse_line(json.dumps(line), default_custom_id="d")
        assert openai.parse_object(parsed.payload, default_custom_id="other") == parsed
        return
    with pytest.raises(RequestError) as caught:
        openai.parse_line(json.dumps(line), default_custom_id="d")
    assert (caught.value.param, caught.value.status_code) == (refused, 400)


def test_the_corpus_has_every_field() -> None:
    shown = {name for param in read_corpus() for name in body_of(param.values[0])}

    assert set(FIELDS) <= shown
    assert len(read_corpus()) >= 120


USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f"}}
ASKING: dict[str, tuple[dict[str, Any], Any]] = {
    "messages": ({}, [USER, USER]),
    "model": ({}, "m"),
    "max_tokens": ({}, 5),
    "max_completion_tokens": ({}, 5),
    "min_tokens": ({}, 5),
    "temperature": ({}, 0.5),
    "top_p": ({}, 0.5),
    "top_k": ({}, 5),
    "min_p": ({}, 0.5),
    "seed": ({}, 5),
    "stop": ({}, "a"),
    "stop_token_ids": ({}, [1]),
    "ignore_eos": ({}, True),
    "include_stop_str_in_output": ({}, True),
    "timeout": ({}, 5),
    "presence_penalty": ({}, 0.5),
    "frequency_penalty": ({}, 0.5),
    "repetition_penalty": ({}, 1.5),
    "repetition_detection": ({}, {"max_pattern_size": 3, "min_count": 3}),
    "logit_bias": ({}, {"1": 1}),
    "bad_words": ({}, ["a"]),
    "allowed_token_ids": ({}, [1]),
    "n": ({}, 2),
    "use_beam_search": ({}, True),
    "beam_width": ({"use_beam_search": True}, 3),
    "length_penalty": ({"use_beam_search": True}, 0.5),
    "early_stopping": ({"use_beam_search": True}, True),
    "logprobs": ({}, True),
    "top_logprobs": ({"logprobs": True}, 2),
    "prompt_logprobs": ({}, 0),
    "logprob_token_ids": ({}, [1]),
    "echo": ({"prompt": "x"}, True),
    "add_generation_prompt": ({}, False),
    "continue_final_message": ({"add_generation_prompt": False}, True),
    "return_token_ids": ({}, True),
    "thinking_token_budget": ({}, 5),
    "response_format": ({}, {"type": "json_object"}),
    "structured_outputs": ({}, {"regex": "a"}),
    "tools": ({}, [TOOL]),
    "tool_choice": ({"tools": [TOOL]}, "required"),
    "parallel_tool_calls": ({"tools": [TOOL]}, False),
    "chat_template_kwargs": ({}, {"a": 1}),
    "reasoning_effort": ({}, "low"),
}
"""For each honoured field a value that asks for something, and what it needs beside it."""
CAN_NOT_ASK = {"best_of"}
"""It may only repeat what `n` says."""


def test_every_honoured_field_is_asked_below() -> None:
    honoured = {name for name, field in FIELDS.items() if field.check is not None and not field.label}

    assert honoured - {"prompt"} == set(ASKING) | CAN_NOT_ASK


def what_is_asked(body: dict[str, Any]) -> Request:
    asked = body if "prompt" in body else {"messages": [USER], **body}
    request = openai.parse_line(json.dumps(asked), default_custom_id="d").request
    return msgspec.structs.replace(request, content_hash="")


@pytest.mark.parametrize("name", ASKING)
def test_an_honoured_field_changes_the_request(name: str) -> None:
    beside, value = ASKING[name]

    assert what_is_asked({**beside, name: value}) != what_is_asked(beside)


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.label])
def test_a_label_changes_nothing(name: str) -> None:
    value = {} if name == "metadata" else "x"

    assert what_is_asked({name: value}) == what_is_asked({})
