"""What fields ask for together: the parameters that they fill, and the combinations that are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlxq.contract import Beam, RepetitionDetection, Request, Sampling, Structure, ToolChoice
from mlxq.errors import RequestError
from mlxq.requests import openai
from mlxq.requests.fields import MAX_ALLOWED_TOKENS, MAX_BAD_WORDS, MAX_BIASES

USER = {"role": "user", "content": "hi"}
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
SUB = {"type": "function", "function": {"name": "sub"}}
STRICT = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}, "strict": True}}
NAMED = {"type": "function", "function": {"name": "add"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}


def completion(**body: Any) -> Request:
    line = json.dumps({"prompt": "x", **body})
    return openai.parse_line(line, default_custom_id="d").request


def chat(**body: Any) -> Request:
    line = json.dumps({"messages": [USER], **body})
    return openai.parse_line(line, default_custom_id="d").request


def refused(**body: Any) -> tuple[str | None, str]:
    """The field that a request is refused for, and the code. It is a chat, unless it has a prompt."""
    with pytest.raises(RequestError) as caught:
        completion(**body) if "prompt" in body else chat(**body)
    assert caught.value.param is not None
    assert caught.value.status_code == 400
    assert caught.value.param.split(".")[0].split("[")[0] in caught.value.message
    assert len(caught.value.message) < 300
    return caught.value.param, caught.value.code


# --- Sampling -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"n": 64}, {"n": 64}),
        ({"seed": -2}, {"seed": -2}),
        ({"seed": -1}, {"seed": None}),
        ({"n": 3, "best_of": 3}, {"n": 3}),
        ({"n": 3, "best_of": 1}, {"n": 3}),
        ({"presence_penalty": -2}, {"presence_penalty": -2.0}),
        ({"frequency_penalty": 2}, {"frequency_penalty": 2.0}),
        ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
        ({"logit_bias": {"0": -100, "50256": 1.5}}, {"logit_bias": {0: -100.0, 50256: 1.5}}),
        ({"logit_bias": {}}, {}),
        ({"bad_words": ["a b", "c"]}, {"bad_words": ("a b", "c")}),
        ({"allowed_token_ids": [0, 7]}, {"allowed_token_ids": (0, 7)}),
        ({"prompt_logprobs": 0}, {"prompt_logprobs": 0}),
        ({"prompt_logprobs": 20}, {"prompt_logprobs": 20}),
        ({"return_token_ids": True}, {"return_token_ids": True}),
        ({"length_penalty": 1, "early_stopping": False, "use_beam_search": False, "beam_width": 1}, {}),
        ({"repetition_detection": {}}, {}),
        ({"repetition_detection": {"max_pattern_size": 0, "min_count": 3}}, {}),
        (
            {"repetition_detection": {"max_pattern_size": 8, "min_count": 3}},
            {"repetition_detection": RepetitionDetection(max_pattern_size=8, min_pattern_size=1, min_count=3)},
        ),
        (
            {"repetition_detection": {"max_pattern_size": 8, "min_pattern_size": 8, "min_count": 2}},
            {"repetition_detection": RepetitionDetection(max_pattern_size=8, min_pattern_size=8, min_count=2)},
        ),
    ],
)
def test_what_is_asked_reaches_the_sampling_params(body: dict[str, Any], expected: dict[str, Any]) -> None:
    assert completion(**body).sampling == Sampling(**expected)
    assert chat(**body).sampling == Sampling(**expected)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"n": 0}, "n", "out_of_range"),
        ({"n": 65}, "n", "out_of_range"),
        ({"n": 2.5}, "n", "invalid_type"),
        ({"n": 2, "best_of": 3}, "best_of", "out_of_range"),
        ({"best_of": 2}, "best_of", "out_of_range"),
        ({"presence_penalty": 2.1}, "presence_penalty", "out_of_range"),
        ({"frequency_penalty": -2.1}, "frequency_penalty", "out_of_range"),
        ({"repetition_penalty": 0}, "repetition_penalty", "out_of_range"),
        ({"repetition_penalty": -1}, "repetition_penalty", "out_of_range"),
        ({"logit_bias": [1]}, "logit_bias", "invalid_type"),
        ({"logit_bias": {"a": 1}}, "logit_bias.a", "out_of_range"),
        ({"logit_bias": {"-1": 1}}, "logit_bias.-1", "out_of_range"),
        ({"logit_bias": {"01": 1}}, "logit_bias.01", "out_of_range"),
        ({"logit_bias": {"": 1}}, "logit_bias.", "out_of_range"),
        ({"logit_bias": {"²": 1}}, "logit_bias.²", "out_of_range"),
        ({"logit_bias": {"2147483648": 1}}, "logit_bias.2147483648", "out_of_range"),
        ({"logit_bias": {"9" * 5000: 1}}, f"logit_bias.{'9' * 40}", "out_of_range"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "out_of_range"),
        ({"logit_bias": {"5": "1"}}, "logit_bias.5", "invalid_type"),
        ({"logit_bias": {str(i): 1 for i in range(MAX_BIASES + 1)}}, "logit_bias", "out_of_range"),
        ({"bad_words": "a"}, "bad_words", "invalid_type"),
        ({"bad_words": [""]}, "bad_words[0]", "out_of_range"),
        ({"bad_words": ["a"] * (MAX_BAD_WORDS + 1)}, "bad_words", "out_of_range"),
        ({"allowed_token_ids": []}, "allowed_token_ids", "out_of_range"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids[0]", "out_of_range"),
        ({"allowed_token_ids": [1] * (MAX_ALLOWED_TOKENS + 1)}, "allowed_token_ids", "out_of_range"),
        ({"prompt_logprobs": -1}, "prompt_logprobs", "out_of_range"),
        ({"prompt_logprobs": True}, "prompt_logprobs", "invalid_type"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "out_of_range"),
        ({"repetition_detection": 3}, "repetition_detection", "invalid_type"),
        ({"repetition_detection": {"size": 3}}, "repetition_detection.size", "unknown_field"),
        ({"repetition_detection": {"max_pattern_size": 3}}, "repetition_detection.min_count", "out_of_range"),
        (
            {"repetition_detection": {"max_pattern_size": 3, "min_pattern_size": 4, "min_count": 2}},
            "repetition_detection.min_pattern_size",
            "out_of_range",
        ),
        (
            {"repetition_detection": {"max_pattern_size": 257, "min_count": 2}},
            "repetition_detection.max_pattern_size",
            "out_of_range",
        ),
    ],
)
def test_a_wrong_value_is_refused_by_name(body: dict[str, Any], param: str, code: str) -> None:
    assert refused(**body) == (param, code)


# --- Log probabilities ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": False, "top_logprobs": 0}, None),
        ({"top_logprobs": 0}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 0}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_a_chat_asks_for_log_probabilities_in_two_fields(body: dict[str, Any], expected: int | None) -> None:
    assert chat(**body).sampling.logprobs == expected
    assert completion(**body).sampling.logprobs == expected


@pytest.mark.parametrize(("asked", "expected"), [(0, 0), (5, 5), (20, 20)])
def test_a_completion_may_ask_for_them_with_a_number(asked: int, expected: int) -> None:
    assert completion(logprobs=asked).sampling.logprobs == expected
    assert completion(logprobs=asked, top_logprobs=asked).sampling.logprobs == expected


def test_log_probabilities_that_contradict_each_other_are_refused() -> None:
    assert refused(logprobs=5) == ("logprobs", "invalid_type")
    assert refused(logprobs="yes") == ("logprobs", "invalid_type")
    assert refused(top_logprobs=2) == ("top_logprobs", "conflicting_fields")
    assert refused(logprobs=False, top_logprobs=2) == ("top_logprobs", "conflicting_fields")
    assert refused(prompt="x", logprobs=5, top_logprobs=2) == ("top_logprobs", "conflicting_fields")
    assert refused(prompt="x", logprobs=21) == ("logprobs", "out_of_range")
    assert refused(prompt="x", logprobs=-1) == ("logprobs", "out_of_range")


# --- Beam search ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "n", "beam"),
    [
        ({}, 1, Beam(width=1)),
        ({"n": 4}, 4, Beam(width=4)),
        ({"n": 2, "beam_width": 32}, 2, Beam(width=32)),
        ({"n": 32}, 32, Beam(width=32)),
        (
            {"beam_width": 4, "length_penalty": -0.5, "early_stopping": True},
            1,
            Beam(width=4, length_penalty=-0.5, early_stopping=True),
        ),
        ({"beam_width": 4, "early_stopping": "never"}, 1, Beam(width=4, early_stopping="never")),
        ({"n": 2, "temperature": 0, "top_p": 1, "top_k": -1, "stop": [], "logprobs": False}, 2, Beam(width=2)),
        ({"n": 2, "stop_token_ids": [3], "min_tokens": 2, "ignore_eos": True, "seed": 1}, 2, Beam(width=2)),
    ],
)
def test_a_beam_search_returns_n_of_its_beams(body: dict[str, Any], n: int, beam: Beam) -> None:
    sampling = completion(use_beam_search=True, **body).sampling
    assert (sampling.n, sampling.beam) == (n, beam)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temperature": 0.7}, "temperature"),
        ({"top_p": 0.9}, "top_p"),
        ({"top_k": 5}, "top_k"),
        ({"min_p": 0.1}, "min_p"),
        ({"stop": "a"}, "stop"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"frequency_penalty": 1}, "frequency_penalty"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"repetition_detection": {"max_pattern_size": 2, "min_count": 2}}, "repetition_detection"),
        ({"logit_bias": {"1": 1}}, "logit_bias"),
        ({"bad_words": ["a"]}, "bad_words"),
        ({"allowed_token_ids": [1]}, "allowed_token_ids"),
        ({"logprobs": True}, "logprobs"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"tools": [ADD], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": NAMED}, "tool_choice"),
        ({"tools": [ADD, STRICT]}, "tools[1].function.strict"),
    ],
)
def test_what_a_beam_search_can_not_honour_is_refused(body: dict[str, Any], param: str) -> None:
    assert refused(use_beam_search=True, n=2, **body) == (param, "conflicting_fields")


def test_a_beam_search_is_never_narrower_than_its_answers() -> None:
    assert refused(use_beam_search=True, n=3, beam_width=2) == ("n", "out_of_range")
    assert refused(use_beam_search=True, n=33) == ("n", "out_of_range")
    assert refused(use_beam_search=True, beam_width=33) == ("beam_width", "out_of_range")
    assert refused(use_beam_search=True, beam_width=0) == ("beam_width", "out_of_range")
    assert refused(use_beam_search=True, early_stopping="always") == ("early_stopping", "invalid_type")
    assert refused(use_beam_search=1) == ("use_beam_search", "invalid_type")


@pytest.mark.parametrize(("name", "value"), [("beam_width", 2), ("length_penalty", 0.5), ("early_stopping", True)])
def test_a_field_of_beams_is_refused_without_a_beam_search(name: str, value: Any) -> None:
    assert refused(**{name: value}) == (name, "conflicting_fields")
    assert refused(**{name: value}, use_beam_search=False) == (name, "conflicting_fields")


# --- Structure ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Structure(kind="json_object", param="response_format")),
        (
            {"response_format": JSON_SCHEMA},
            Structure(kind="json_schema", value=SCHEMA, param="response_format.json_schema.schema"),
        ),
        (
            {"structured_outputs": {"json": SCHEMA}},
            Structure(kind="json_schema", value=SCHEMA, param="structured_outputs.json"),
        ),
        (
            {"structured_outputs": {"json": json.dumps(SCHEMA)}},
            Structure(kind="json_schema", value=SCHEMA, param="structured_outputs.json"),
        ),
        (
            {"structured_outputs": {"regex": "a+", "json": None}},
            Structure(kind="regex", value="a+", param="structured_outputs.regex"),
        ),
        (
            {"structured_outputs": {"choice": ["a", "b"], "json_object": False}},
            Structure(kind="choice", value=("a", "b"), param="structured_outputs.choice"),
        ),
        (
            {"structured_outputs": {"grammar": "root ::= 'a'", "disable_any_whitespace": False}},
            Structure(kind="grammar", value="root ::= 'a'", param="structured_outputs.grammar"),
        ),
        (
            {"structured_outputs": {"json_object": True}, "response_format": {"type": "text"}},
            Structure(kind="json_object", param="structured_outputs.json_object"),
        ),
    ],
)
def test_the_form_of_the_answer_is_read_from_either_field(body: dict[str, Any], expected: Structure | None) -> None:
    assert chat(**body).structure == expected
    assert completion(**body).structure == expected


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"response_format": "json"}, "response_format", "invalid_type"),
        ({"response_format": {}}, "response_format.type", "missing_field"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "out_of_range"),
        ({"response_format": {"type": "structural_tag"}}, "response_format.structures", "missing_field"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "out_of_range"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_field"),
        (
            {"response_format": {"type": "json_object", "json_schema": {"schema": {}}}},
            "response_format.json_schema",
            "invalid_value",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
            "missing_field",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}},
            "response_format.json_schema.schema",
            "invalid_type",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "strickt": True}}},
            "response_format.json_schema.strickt",
            "unknown_field",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"title": "x" * 2**18}}}},
            "response_format.json_schema.schema",
            "out_of_range",
        ),
        ({"structured_outputs": {}}, "structured_outputs", "invalid_value"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs", "invalid_value"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "invalid_value"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex", "out_of_range"),
        ({"structured_outputs": {"regex": "a" * 2**18}}, "structured_outputs.regex", "out_of_range"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "out_of_range"),
        ({"structured_outputs": {"choice": ["a"] * 4097}}, "structured_outputs.choice", "out_of_range"),
        ({"structured_outputs": {"choice": ["a", 1]}}, "structured_outputs.choice[1]", "invalid_type"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "invalid_schema"),
        ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json", "invalid_type"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", "invalid_schema"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": JSON_SCHEMA},
            "structured_outputs",
            "conflicting_fields",
        ),
    ],
)
def test_a_form_that_can_not_be_is_refused(body: dict[str, Any], param: str, code: str) -> None:
    assert refused(**body) == (param, code)


def test_unknown_fields_inside_a_format_are_dropped_when_allowed() -> None:
    line = {"prompt": "x", "response_format": {"type": "json_object", "x": 1, "json_schema": None}}

    parsed = openai.parse_object(line, default_custom_id="d", allow_unknown=True)

    assert parsed.payload["body"]["response_format"] == {"type": "json_object"}


# --- Tools ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, ToolChoice()),
        ({"tool_choice": "auto"}, ToolChoice()),
        ({"parallel_tool_calls": False}, ToolChoice()),
        ({"tools": [ADD]}, ToolChoice()),
        ({"tools": [ADD], "parallel_tool_calls": False}, ToolChoice(parallel=False)),
        ({"tools": [ADD], "tool_choice": "none"}, ToolChoice(mode="none")),
        ({"tools": [STRICT], "tool_choice": "required"}, ToolChoice(mode="required")),
        ({"tools": [SUB, ADD], "tool_choice": NAMED}, ToolChoice(mode="required", name="add")),
        ({"tools": [ADD], "tool_choice": {"function": {"name": "add"}}}, ToolChoice(mode="required", name="add")),
        ({"tools": [STRICT], "tool_choice": "none"}, ToolChoice(mode="none")),
    ],
)
def test_a_tool_choice_says_whether_and_which(body: dict[str, Any], expected: ToolChoice) -> None:
    assert chat(**body).tool_choice == expected


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"tool_choice": "required"}, "tool_choice", "conflicting_fields"),
        ({"tools": [], "tool_choice": NAMED}, "tool_choice", "conflicting_fields"),
        ({"tools": [SUB], "tool_choice": NAMED}, "tool_choice.function.name", "unknown_tool"),
        ({"tools": [ADD], "tool_choice": "any"}, "tool_choice", "out_of_range"),
        ({"tools": [ADD], "tool_choice": 1}, "tool_choice", "invalid_type"),
        ({"tools": [ADD], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.type", "out_of_range"),
        ({"tools": [ADD], "tool_choice": {"type": "function"}}, "tool_choice.function", "invalid_type"),
        (
            {"tools": [ADD], "tool_choice": {"type": "function", "function": {}}},
            "tool_choice.function.name",
            "invalid_type",
        ),
        (
            {"tools": [ADD], "tool_choice": {"type": "function", "name": "add"}},
            "tool_choice.name",
            "unknown_field",
        ),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls", "invalid_type"),
        (
            {"tools": [ADD], "structured_outputs": {"grammar": "start: A"}},
            "structured_outputs.grammar",
            "conflicting_fields",
        ),
        (
            {"tools": [ADD], "tool_choice": "required", "response_format": JSON_SCHEMA},
            "tool_choice",
            "conflicting_fields",
        ),
        (
            {"tools": [ADD], "tool_choice": NAMED, "structured_outputs": {"regex": "a"}},
            "tool_choice",
            "conflicting_fields",
        ),
    ],
)
def test_a_tool_choice_that_can_not_be_kept_is_refused(body: dict[str, Any], param: str, code: str) -> None:
    assert refused(**body) == (param, code)


def test_an_unknown_tool_is_answered_with_the_known_ones() -> None:
    many = [{"type": "function", "function": {"name": f"tool_{i}" + "x" * 50}} for i in range(200)]
    with pytest.raises(RequestError) as caught:
        chat(tools=[ADD, *many], tool_choice={"type": "function", "function": {"name": "ad" * 1000}})
    assert "(add, tool_0" in caught.value.message
    assert len(caught.value.message) < 300


def test_a_form_goes_with_tools_that_the_model_need_not_call() -> None:
    request = chat(tools=[ADD], response_format=JSON_SCHEMA)
    assert request.structure is not None
    assert request.tools == (ADD,)


def test_a_form_goes_with_tools_that_are_hidden() -> None:
    request = chat(tools=[ADD], tool_choice="none", response_format=JSON_SCHEMA)
    assert request.structure is not None
    assert request.tools is None


@pytest.mark.parametrize(
    ("name", "neutral", "asking"),
    [("tool_choice", "auto", "required"), ("parallel_tool_calls", True, False), ("tools", [], [ADD])],
)
def test_a_completion_takes_a_field_of_chats_only_if_it_asks_nothing(name: str, neutral: Any, asking: Any) -> None:
    assert completion(**{name: neutral}).tool_choice == ToolChoice()
    assert refused(prompt="x", **{name: asking}) == (name, "unsupported_field")


# --- Reasoning ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"reasoning_effort": "high"}, {"reasoning_effort": "high", "enable_thinking": True}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "none", "enable_thinking": False}),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False, "x": 1}},
            {"reasoning_effort": "low", "enable_thinking": False, "x": 1},
        ),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "low"}},
            {"reasoning_effort": "low", "enable_thinking": True},
        ),
        ({"chat_template_kwargs": {"x": 1}}, {"x": 1}),
    ],
)
def test_the_effort_is_a_variable_of_the_template(body: dict[str, Any], expected: dict[str, Any]) -> None:
    assert chat(**body).chat_template_kwargs == expected


def test_an_effort_that_makes_no_sense_is_refused() -> None:
    both = {"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}}
    assert refused(**both) == ("reasoning_effort", "conflicting_fields")
    assert refused(reasoning_effort="extreme") == ("reasoning_effort", "out_of_range")
    assert refused(prompt="x", reasoning_effort="low") == ("reasoning_effort", "unsupported_field")


def test_reasoning_in_a_message_has_two_names() -> None:
    answer = {"role": "assistant", "content": "x", "reasoning": "hm"}
    expected = {"role": "assistant", "content": "x", "reasoning_content": "hm"}
    assert chat(messages=[USER, answer]).messages == (USER, expected)
    assert chat(messages=[USER, {**answer, "reasoning_content": "hm"}]).messages == (USER, expected)
    assert refused(messages=[{**answer, "reasoning_content": "oh"}])[0] == "messages[0].reasoning"
