"""The wire format: every accepted shape, every refusal with its field and code, and the lines that go out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlxq.contract import (
    CHAT,
    COMPLETIONS,
    Request,
    Sampling,
)
from mlxq.errors import ConfigError, RequestError
from mlxq.requests import normal_form, openai
from mlxq.requests.fields import FIELDS

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}


def parse(line: Any, **options: Any) -> Request:
    return openai.parse_line(json.dumps(line), default_custom_id="default", **options).request


def refusal(line: Any, **options: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(line, **options)
    return caught.value


def sampling(**body: Any) -> Sampling:
    return parse({"prompt": "x", **body}).sampling


# --- Shapes ---------------------------------------------------------------------------------------------------


def test_the_canonical_batch_line_is_read() -> None:
    body = {"model": "m", "messages": [USER], "max_tokens": 5}
    request = parse({"custom_id": "r1", "method": "POST", "url": CHAT, "body": body})
    assert request == Request(
        custom_id="r1",
        endpoint=CHAT,
        sampling=Sampling(max_tokens=5),
        content_hash=normal_form.content_hash(CHAT, body),
        messages=(USER,),
        model="m",
    )


@pytest.mark.parametrize(
    ("line", "endpoint", "custom_id"),
    [
        ({"prompt": "x"}, COMPLETIONS, "default"),
        ({"messages": [USER]}, CHAT, "default"),
        ({"id": "a", "prompt": "x"}, COMPLETIONS, "a"),
        ({"custom_id": "a", "messages": [USER], "seed": 1}, CHAT, "a"),
        ({"custom_id": "a", "id": "a", "prompt": "x"}, COMPLETIONS, "a"),
        ({"custom_id": None, "method": None, "url": None, "body": {"prompt": "x"}}, COMPLETIONS, "default"),
        ({"url": COMPLETIONS, "prompt": "x"}, COMPLETIONS, "default"),
        ({"body": {"prompt": "x", "messages": None}}, COMPLETIONS, "default"),
    ],
)
def test_shorthands_and_optional_parts_are_read(line: Any, endpoint: str, custom_id: str) -> None:
    request = parse(line)
    assert (request.endpoint, request.custom_id) == (endpoint, custom_id)


@pytest.mark.parametrize(
    ("line", "param", "code"),
    [
        ([], None, "invalid_type"),
        ("text", None, "invalid_type"),
        ({}, "messages", "missing_field"),
        ({"custom_id": "a", "body": {}}, "messages", "missing_field"),
        ({"body": []}, "body", "invalid_type"),
        ({"prompt": "x", "messages": [USER]}, "prompt", "invalid_value"),
        ({"method": "GET", "prompt": "x"}, "method", "out_of_range"),
        ({"method": ["POST"], "prompt": "x"}, "method", "out_of_range"),
        ({"url": "/v1/embeddings", "prompt": "x"}, "url", "out_of_range"),
        ({"url": "/v1/embeddings", "body": {"input": "x"}}, "url", "out_of_range"),
        ({"url": CHAT, "prompt": "x"}, "url", "invalid_value"),
        ({"url": COMPLETIONS, "messages": [USER]}, "url", "invalid_value"),
        ({"custom_id": 7.5, "prompt": "x"}, "custom_id", "invalid_type"),
        ({"custom_id": True, "prompt": "x"}, "custom_id", "invalid_type"),
        ({"custom_id": "", "prompt": "x"}, "custom_id", "out_of_range"),
        ({"id": "a" * 513, "prompt": "x"}, "id", "out_of_range"),
        ({"custom_id": "a", "id": "b", "prompt": "x"}, "id", "invalid_value"),
        ({"body": {"prompt": "x"}, "priority": 1}, "priority", "unknown_field"),
        ({"prompt": ""}, "prompt", "out_of_range"),
        ({"prompt": []}, "prompt", "out_of_range"),
        ({"prompt": 7}, "prompt", "invalid_type"),
        ({"prompt": ["a", "b"]}, "prompt", "invalid_type"),
        ({"prompt": [""]}, "prompt[0]", "out_of_range"),
        ({"prompt": [["a"]]}, "prompt[0][0]", "invalid_type"),
        ({"prompt": [[]]}, "prompt[0]", "out_of_range"),
        ({"prompt": [[1], [2]]}, "prompt", "invalid_type"),
        ({"prompt": [1, True]}, "prompt[1]", "invalid_type"),
        ({"prompt": [1, -1]}, "prompt[1]", "out_of_range"),
        ({"prompt": "x", "tools": [TOOL]}, "tools", "unsupported_field"),
        ({"prompt": "x", "chat_template_kwargs": {}}, "chat_template_kwargs", "unsupported_field"),
    ],
)
def test_a_wrong_line_is_refused_by_field_and_code(line: Any, param: str | None, code: str) -> None:
    error = refusal(line)
    assert (error.param, error.code, error.status_code) == (param, code, 400)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"prompt": "x"} {}',
        b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "temperature": 1e999}',
        b'{"prompt": "x", "temperature": ' + b"9" * 9999 + b"}",
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        "\ud800",
        b"[" * 100_000,
    ],
)
def test_what_is_not_json_is_refused_as_such(data: bytes | str) -> None:
    with pytest.raises(RequestError, match="not valid JSON") as caught:
        openai.parse_line(data, default_custom_id="default")
    assert caught.value.code == "invalid_json"


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, "\ud800"])
def test_an_object_that_is_not_json_is_refused(value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        openai.parse_object({"prompt": "x", "metadata": {"a": value}}, default_custom_id="default")
    assert caught.value.code == "invalid_json"


def test_an_object_that_holds_itself_is_refused() -> None:
    loop: dict[str, Any] = {"prompt": "x"}
    loop["metadata"] = loop
    with pytest.raises(RequestError):
        openai.parse_object(loop, default_custom_id="default")


def test_nesting_is_limited_exactly() -> None:
    def nested(levels: int) -> dict[str, Any]:
        value: Any = 0
        for _ in range(levels - 1):
            value = [value]
        return {"prompt": "x", "metadata": {"deep": value}}

    assert parse(nested(openai.MAX_DEPTH - 1))
    assert refusal(nested(openai.MAX_DEPTH)).code == "too_deep"


def test_a_line_over_the_size_limit_is_refused() -> None:
    line = b'{"prompt": "%s"}' % (b"x" * openai.MAX_LINE_BYTES)
    with pytest.raises(RequestError, match="16 MiB") as caught:
        openai.parse_line(line, default_custom_id="default")
    assert (caught.value.code, caught.value.status_code) == ("line_too_long", 413)


@pytest.mark.parametrize("prompt", ["x", [5, 0]])
def test_a_list_of_one_prompt_is_that_prompt(prompt: Any) -> None:
    assert parse({"prompt": [prompt]}).prompt == parse({"prompt": prompt}).prompt


def test_token_ids_are_a_prompt() -> None:
    assert parse({"prompt": [0, 5, 7]}).prompt == (0, 5, 7)


def test_a_list_of_prompts_is_answered_with_what_to_do() -> None:
    assert "one line per prompt" in refusal({"prompt": ["a", "b"]}).message


def test_plain_text_is_a_completion_or_one_user_message() -> None:
    completion = openai.text_request("hi", custom_id="a", defaults={"seed": 3}).request
    chat = openai.text_request("hi", custom_id="a", chat=True).request
    assert (completion.custom_id, completion.prompt, completion.sampling.seed) == ("a", "hi", 3)
    assert (chat.endpoint, chat.messages) == (CHAT, (USER,))


# --- Fields ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "attribute", "expected"),
    [
        ("max_tokens", 1, "max_tokens", 1),
        ("max_completion_tokens", 9, "max_tokens", 9),
        ("min_tokens", 0, "min_tokens", 0),
        ("min_tokens", 4, "min_tokens", 4),
        ("temperature", 0, "temperature", 0.0),
        ("temperature", 2.5, "temperature", 2.5),
        ("top_p", 0.001, "top_p", 0.001),
        ("top_p", 1, "top_p", 1.0),
        ("top_k", -1, "top_k", 0),
        ("top_k", 0, "top_k", 0),
        ("top_k", 40, "top_k", 40),
        ("min_p", 0, "min_p", 0.0),
        ("min_p", 1.0, "min_p", 1.0),
        ("seed", -(2**63), "seed", -(2**63)),
        ("seed", 2**64 - 1, "seed", 2**64 - 1),
        ("stop", "END", "stop", ("END",)),
        ("stop", [], "stop", ()),
        ("stop", ["a"] * 16, "stop", ("a",) * 16),
        ("stop_token_ids", [0, 7], "stop_token_ids", (0, 7)),
        ("ignore_eos", True, "ignore_eos", True),
        ("include_stop_str_in_output", True, "include_stop_str_in_output", True),
        ("timeout", 0.5, "timeout_s", 0.5),
    ],
)
def test_an_honoured_field_reaches_the_sampling_params(name: str, value: Any, attribute: str, expected: Any) -> None:
    filled = getattr(sampling(**{name: value}), attribute)
    assert (filled, type(filled)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        *[(name, "1", "invalid_type") for name, field in FIELDS.items() if field.fills and name != "stop"],
        *[
            (name, True, "invalid_type")
            for name, field in FIELDS.items()
            if field.fills and name not in ("ignore_eos", "include_stop_str_in_output", "return_token_ids")
        ],
        ("max_tokens", 1.5, "invalid_type"),
        ("max_tokens", 0, "out_of_range"),
        ("max_tokens", 2**31, "out_of_range"),
        ("max_completion_tokens", 0, "out_of_range"),
        ("min_tokens", -1, "out_of_range"),
        ("temperature", -0.1, "out_of_range"),
        ("temperature", 10**400, "out_of_range"),
        ("top_p", 0, "out_of_range"),
        ("top_p", 1.1, "out_of_range"),
        ("top_k", -2, "out_of_range"),
        ("top_k", 1.5, "invalid_type"),
        ("min_p", -0.1, "out_of_range"),
        ("min_p", 1.1, "out_of_range"),
        ("seed", 2**64, "out_of_range"),
        ("seed", -(2**63) - 1, "out_of_range"),
        ("seed", 0.5, "invalid_type"),
        ("stop", "", "out_of_range"),
        ("stop", ["a"] * 17, "out_of_range"),
        ("stop_token_ids", [0] * 65, "out_of_range"),
        ("ignore_eos", 1, "invalid_type"),
        ("include_stop_str_in_output", 0, "invalid_type"),
        ("timeout", 0, "out_of_range"),
        ("timeout", -1, "out_of_range"),
        ("model", 7, "invalid_type"),
        ("model", "", "out_of_range"),
        ("user", 7, "invalid_type"),
        ("metadata", "x", "invalid_type"),
    ],
)
def test_a_wrong_value_is_refused_under_its_fields_name(name: str, value: Any, code: str) -> None:
    error = refusal({"prompt": "x", name: value})
    assert (error.param, error.code) == (name, code)
    assert error.message.startswith(name)


@pytest.mark.parametrize(
    ("name", "value", "param", "code"),
    [
        ("stop", ["a", ""], "stop[1]", "out_of_range"),
        ("stop", ["a", 1], "stop[1]", "invalid_type"),
        ("stop_token_ids", [1, -1], "stop_token_ids[1]", "out_of_range"),
        ("stop_token_ids", ["1"], "stop_token_ids[0]", "invalid_type"),
    ],
)
def test_a_wrong_item_is_refused_under_its_index(name: str, value: Any, param: str, code: str) -> None:
    error = refusal({"prompt": "x", name: value})
    assert (error.param, error.code) == (param, code)


def test_an_error_shows_what_was_given_in_json_words() -> None:
    assert refusal({"prompt": "x", "top_k": True}).message.endswith("not true")
    assert refusal({"prompt": "x", "top_k": {"a": 1}}).message.endswith("not an object")
    assert refusal({"prompt": "x", "top_k": "1"}).message.endswith('not "1"')


def test_an_error_never_repeats_a_long_value_or_name() -> None:
    assert len(refusal({"prompt": "x", "top_k": "1" * 10_000}).message) < 200
    assert len(refusal({"prompt": "x", "y" * 10_000: 1}).message) < 200


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in ("messages", "prompt")])
def test_null_means_absent_for_every_field(name: str) -> None:
    assert parse({"prompt": "x", name: None}) == parse({"prompt": "x"})


REFUSED = {
    "guided_json": {},
    "guided_regex": "a",
    "guided_choice": ["a"],
    "guided_grammar": "a",
    "functions": [{}],
    "function_call": {"name": "f"},
    "include_reasoning": False,
    "return_tokens_as_token_ids": True,
    "return_prompt_text": True,
    "verbosity": "low",
    "modalities": ["text", "audio"],
    "audio": {},
    "prediction": {},
    "web_search_options": {},
    "suffix": "x",
    "stream": True,
    "stream_options": {},
    "store": True,
    "service_tier": "flex",
    "priority": 1,
    "request_id": "a",
    "cache_salt": "a",
    "truncate_prompt_tokens": 5,
    "truncation_side": "left",
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "add_special_tokens": True,
    "chat_template": "x",
    "documents": [],
    "mm_processor_kwargs": {},
    "media_io_kwargs": {},
    "kv_transfer_params": {},
    "ec_transfer_params": {},
    "stream_interval": 2,
    "return_token_offsets": True,
    "vllm_xargs": {},
    "repetition_context_size": 20,
    "presence_context_size": 20,
    "frequency_context_size": 20,
    "xtc_probability": 0.1,
    "xtc_threshold": 0.1,
    "adapters": "a",
    "draft_model": "a",
    "num_draft_tokens": 3,
    "role_mapping": {},
}


def test_every_refused_field_is_covered_below() -> None:
    assert {name for name, field in FIELDS.items() if field.check is None} == set(REFUSED)


@pytest.mark.parametrize(("name", "value"), REFUSED.items())
def test_a_refused_field_is_refused_unless_neutral(name: str, value: Any) -> None:
    error = refusal({"messages": [USER], name: value})
    assert (error.param, error.code) == (name, "unsupported_field")
    for neutral in FIELDS[name].neutral:
        assert (FIELDS[name].hint or json.dumps(neutral)) in error.message
        assert parse({"messages": [USER], name: neutral}).sampling == Sampling()


@pytest.mark.parametrize(("name", "value"), [("priority", False), ("stream", 0), ("store", 0)])
def test_true_and_false_are_not_neutral_numbers(name: str, value: Any) -> None:
    assert refusal({"prompt": "x", name: value}).code == "unsupported_field"


def test_an_unknown_field_is_named_with_the_closest_known_one() -> None:
    error = refusal({"prompt": "x", "temprature": 1})
    assert (error.code, error.param) == ("unknown_field", "temprature")
    assert "did you mean temperature?" in error.message


def test_a_misspelt_body_is_named() -> None:
    assert "did you mean body?" in refusal({"custom_id": "a", "bdy": {"prompt": "x"}}).message


def test_a_field_beside_the_body_is_told_where_it_belongs() -> None:
    error = refusal({"body": {"prompt": "x"}, "temperature": 0})
    assert (error.code, error.param) == ("unknown_field", "temperature")
    assert error.message == "temperature stands beside body; it belongs inside"


def test_unknown_fields_are_dropped_everywhere_when_allowed() -> None:
    # given a line with an unknown field at each level
    part = {"type": "text", "text": "hi", "x": 1}
    message = {"role": "user", "content": [part], "x": 1}
    line = {"body": {"messages": [message], "x": 1}, "x": 1}

    # when it is read with and without permission
    parsed = openai.parse_object(line, default_custom_id="a", allow_unknown=True)

    # then nothing of them goes to the worker
    assert parsed.payload["body"] == {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}
    assert refusal(line).code == "unknown_field"


def test_both_names_of_the_limit_may_agree_but_not_differ() -> None:
    assert sampling(max_tokens=5, max_completion_tokens=5).max_tokens == 5
    error = refusal({"prompt": "x", "max_completion_tokens": 5, "max_tokens": 6})
    assert error.message == "max_completion_tokens and max_tokens differ; give one of them"


def test_min_tokens_may_reach_max_tokens_but_not_exceed_it() -> None:
    assert sampling(min_tokens=5, max_tokens=5).min_tokens == 5
    assert refusal({"prompt": "x", "min_tokens": 6, "max_tokens": 5}).param == "min_tokens"


# --- Messages and tools ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "developer", "content": "be brief"}, {"role": "system", "content": "be brief"}),
        ({"role": "user", "content": ""}, {"role": "user", "content": ""}),
        ({"role": "user", "content": "x", "name": "Ann"}, {"role": "user", "content": "x", "name": "Ann"}),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": "a\nb"},
        ),
        (
            {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None, "annotations": []},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
        ),
        (
            {"role": "assistant", "content": "x", "reasoning_content": "y"},
            {"role": "assistant", "content": "x", "reasoning_content": "y"},
        ),
        ({"role": "tool", "content": "3"}, {"role": "tool", "content": "3"}),
        (
            {"role": "tool", "content": "3", "tool_call_id": "c1"},
            {"role": "tool", "content": "3", "tool_call_id": "c1"},
        ),
    ],
)
def test_a_message_is_read_as_templates_take_it(message: Any, expected: Any) -> None:
    assert parse({"messages": [message]}).messages == (expected,)


@pytest.mark.parametrize(
    ("message", "param", "code"),
    [
        ("hi", "", "invalid_type"),
        ({"content": "x"}, ".role", "missing_field"),
        ({"role": "robot", "content": "x"}, ".role", "out_of_range"),
        ({"role": 1, "content": "x"}, ".role", "invalid_type"),
        ({"role": "user"}, ".content", "missing_field"),
        ({"role": "user", "content": None}, ".content", "missing_field"),
        ({"role": "assistant", "content": None}, ".content", "missing_field"),
        ({"role": "tool", "tool_call_id": "c1"}, ".content", "missing_field"),
        ({"role": "user", "content": 7}, ".content", "invalid_type"),
        ({"role": "user", "content": []}, ".content", "out_of_range"),
        ({"role": "user", "content": ["x"]}, ".content[0]", "invalid_type"),
        ({"role": "user", "content": [{"type": "text"}]}, ".content[0].text", "missing_field"),
        ({"role": "user", "content": [{"type": "text", "text": 1}]}, ".content[0].text", "invalid_type"),
        (
            {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {}}]},
            ".content[0].cache_control",
            "unknown_field",
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}]},
            ".content[1]",
            "unsupported_field",
        ),
        ({"role": "user", "content": [{"type": "input_audio"}]}, ".content[0]", "unsupported_field"),
        ({"role": "user", "content": "x", "contnet": "y"}, ".contnet", "unknown_field"),
        ({"role": "user", "content": "x", "name": 1}, ".name", "invalid_type"),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, ".tool_calls", "invalid_value"),
        ({"role": "user", "content": "x", "tool_call_id": "c"}, ".tool_call_id", "invalid_value"),
        ({"role": "assistant", "content": "x", "refusal": "no"}, ".refusal", "unsupported_field"),
        ({"role": "assistant", "tool_calls": []}, ".tool_calls", "out_of_range"),
        ({"role": "assistant", "tool_calls": [1]}, ".tool_calls[0]", "invalid_type"),
        (
            {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f"}}]},
            ".tool_calls[0].function.arguments",
            "invalid_type",
        ),
    ],
)
def test_a_wrong_message_is_refused_by_its_path(message: Any, param: str, code: str) -> None:
    error = refusal({"messages": [USER, message]})
    assert (error.param, error.code) == (f"messages[1]{param}", code)


@pytest.mark.parametrize("messages", ["x", {}, []])
def test_messages_must_be_a_filled_list(messages: Any) -> None:
    assert refusal({"messages": messages}).param == "messages"


def test_tools_are_kept_as_written() -> None:
    assert parse({"messages": [USER], "tools": [TOOL]}).tools == (TOOL,)
    assert parse({"messages": [USER], "tools": [TOOL], "tool_choice": "auto"}).tools == (TOOL,)


def test_a_tool_without_a_type_is_a_function() -> None:
    assert parse({"messages": [USER], "tools": [{"function": {"name": "files/größe.v2:x-y"}}]}).tools == (
        {"function": {"name": "files/größe.v2:x-y"}, "type": "function"},
    )


def test_tool_choice_none_hides_the_tools() -> None:
    assert parse({"messages": [USER], "tools": [TOOL], "tool_choice": "none"}).tools is None
    assert parse({"messages": [USER], "tools": []}).tools is None


@pytest.mark.parametrize(
    ("tool", "param", "code"),
    [
        ("add", "", "invalid_type"),
        ({"type": "custom", "function": {"name": "f"}}, ".type", "out_of_range"),
        ({"type": "function"}, ".function", "invalid_type"),
        ({"type": "function", "function": {}}, ".function.name", "invalid_type"),
        ({"type": "function", "function": {"name": ""}}, ".function.name", "out_of_range"),
        ({"type": "function", "function": {"name": 'f"'}}, ".function.name", "out_of_range"),
        ({"type": "function", "function": {"name": "f\n"}}, ".function.name", "out_of_range"),
        ({"type": "function", "function": {"name": "f" * 129}}, ".function.name", "out_of_range"),
        ({"type": "function", "function": {"name": "f", "parameters": []}}, ".function.parameters", "invalid_type"),
        ({"type": "function", "function": {"name": "f", "strict": 1}}, ".function.strict", "invalid_type"),
    ],
)
def test_a_wrong_tool_is_refused_by_its_path(tool: Any, param: str, code: str) -> None:
    error = refusal({"messages": [USER], "tools": [tool]})
    assert (error.param, error.code) == (f"tools[0]{param}", code)


# --- Defaults, payload and hash -------------------------------------------------------------------------------


def test_a_default_fills_what_the_line_leaves_open() -> None:
    defaults = {"max_tokens": 7, "temperature": 0}
    filled = parse({"prompt": "x", "max_tokens": None, "temperature": 1}, defaults=defaults).sampling
    assert (filled.max_tokens, filled.temperature) == (7, 1.0)


def test_a_default_limit_gives_way_to_the_other_name_of_the_limit() -> None:
    request = parse({"prompt": "x", "max_completion_tokens": 9}, defaults={"max_tokens": 7})
    assert request.sampling.max_tokens == 9


def test_a_default_for_chats_leaves_completions_alone() -> None:
    defaults = {"chat_template_kwargs": {"enable_thinking": False}}
    assert parse({"prompt": "x"}, defaults=defaults) == parse({"prompt": "x"})
    assert parse({"messages": [USER]}, defaults=defaults).chat_template_kwargs == {"enable_thinking": False}


@pytest.mark.parametrize("defaults", [{"temprature": 1}, {"top_p": 2}, {"n": 0}, {"prompt": "x"}, {"messages": 1}])
def test_a_default_that_can_not_be_right_is_a_configuration_error(defaults: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        openai.check_defaults(defaults)


def test_the_payload_is_canonical_and_parses_to_the_same_request() -> None:
    # given a shorthand with a null, a label and a default
    line = {"id": "a", "messages": [USER], "seed": None, "user": "ann", "temperature": 0.1}

    # when it is read, travels as JSON and is read again
    parsed = openai.parse_object(line, default_custom_id="d", defaults={"max_tokens": 3})
    travelled = json.loads(json.dumps(parsed.payload))
    again = openai.parse_object(travelled, default_custom_id="other")

    # then both ends hold the same
    body = {"messages": [USER], "user": "ann", "temperature": 0.1, "max_tokens": 3}
    assert parsed.payload == {"custom_id": "a", "url": CHAT, "body": body}
    assert again == parsed


def test_the_hash_ignores_labels_order_and_ids_but_nothing_else() -> None:
    base = parse({"custom_id": "a", "prompt": "x", "seed": 1, "top_k": 2}).content_hash
    same = parse({"custom_id": "b", "top_k": 2, "seed": 1, "prompt": "x", "user": "u", "metadata": {"k": 1}})
    other_seed = parse({"custom_id": "a", "prompt": "x", "seed": 2, "top_k": 2})
    other_default = parse({"custom_id": "a", "prompt": "x", "seed": 1, "top_k": 2}, defaults={"min_p": 0.1})
    assert base == same.content_hash
    assert base not in (other_seed.content_hash, other_default.content_hash)


def test_the_hash_is_stable_across_releases() -> None:
    # Result files of earlier releases are compared with it when a run resumes.
    assert normal_form.content_hash(COMPLETIONS, {"prompt": "hi", "seed": 1}) == (
        "2bbc4583001ef02a3abbc17aa20c680a11763daefb92b355d7a5f312c3f9d250"
    )


@pytest.mark.parametrize(
    ("line", "custom_id"),
    [
        (b'{"custom_id": "a", "n": 0}', "a"),
        (b'{"id": "a"}', "a"),
        (b'{"custom_id": 7}', "7"),
        (b'{"custom_id": [7]}', None),
        (b'{"custom_id": ""}', None),
        (b"{}", None),
        (b"[]", None),
        (b'{"custom_id": "a"', None),
    ],
)
def test_the_id_of_a_refused_line_is_read_where_it_can_be(line: bytes, custom_id: str | None) -> None:
    assert openai.read_custom_id(line) == custom_id
