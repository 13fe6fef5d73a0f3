"""What vLLM's parameters and arguments become: fields of requests by the same checks, or a refusal by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from tests.support.documents import ROOT

from mlxq import ConfigError, GuidedDecodingParams, RequestError, SamplingParams, StructuredOutputsParams
from mlxq.contract import Request, Sampling, Structure
from mlxq.offline.argument_table import renewed
from mlxq.offline.arguments import CHAT_ARGUMENTS, GENERATE_ARGUMENTS, LLM_ARGUMENTS, read_options, refuse_others
from mlxq.offline.prompts import chats, completions
from mlxq.offline.sampling_params import NOT_IN_REQUESTS, PARAMETERS
from mlxq.requests.field import Field
from mlxq.requests.fields import FIELDS

USER = {"role": "user", "content": "Hi"}
EMPTY: list[Any] = []


def completion(**parameters: Any) -> Request:
    [asked] = completions("Hi", SamplingParams(**parameters))
    return asked.request


def chat(**parameters: Any) -> Request:
    [asked] = chats([USER], SamplingParams(**parameters), {})
    return asked.request


@pytest.mark.parametrize("made", [completion, chat])
def test_the_defaults_are_those_of_vllm(made: Any) -> None:
    assert made().sampling == Sampling(max_tokens=16, return_token_ids=True)


def test_what_is_given_is_what_the_same_field_of_a_request_asks_for() -> None:
    given: dict[str, Any] = {
        "n": 2,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "repetition_penalty": 1.5,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "seed": 4,
        "max_tokens": 9,
        "min_tokens": 2,
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "logprobs": 3,
        "prompt_logprobs": 2,
        "thinking_token_budget": 4,
    }
    lists = {"stop_token_ids": [1, 2], "bad_words": ["no"], "allowed_token_ids": [1, 2], "logprob_token_ids": [7]}

    made = completion(**given, **lists, stop="x", logit_bias={5: 1.5}).sampling

    expected = {**given, **{name: tuple(value) for name, value in lists.items()}, "stop": ("x",)}
    assert made == Sampling(**expected, logit_bias={5: 1.5}, return_token_ids=True)


@pytest.mark.parametrize(("given", "expected"), [(2, 2), (0, 0), (True, 1), (False, None), (None, None)])
def test_logprobs_is_a_number_in_a_chat_too(given: Any, expected: int | None) -> None:
    assert completion(logprobs=given).sampling.logprobs == expected
    assert chat(logprobs=given).sampling.logprobs == expected


def test_a_limit_that_is_none_is_left_to_the_model() -> None:
    assert completion(max_tokens=None).sampling.max_tokens is None


@pytest.mark.parametrize(
    "given",
    [
        {"structured_outputs": StructuredOutputsParams(regex="ab+")},
        {"structured_outputs": {"regex": "ab+"}},
        {"guided_decoding": GuidedDecodingParams(regex="ab+", backend="auto")},
    ],
)
def test_what_holds_an_answer_goes_by_each_of_its_names(given: dict[str, Any]) -> None:
    assert completion(**given).structure == Structure(kind="regex", value="ab+", param="structured_outputs.regex")


def test_schemas_choices_and_loops_are_read_from_objects() -> None:
    @dataclass
    class Loops:
        max_pattern_size: int = 4
        min_pattern_size: int = 1
        min_count: int = 3

    schema = {"type": "object"}

    assert completion(structured_outputs=StructuredOutputsParams(json=schema)).structure.value == schema  # type: ignore[union-attr]
    assert completion(structured_outputs=StructuredOutputsParams(choice=["a", "b"])).structure.value == ("a", "b")  # type: ignore[union-attr]
    assert completion(repetition_detection=Loops()).sampling.repetition_detection.min_count == 3  # type: ignore[union-attr]


def unlike(field: Field) -> Any:
    """A value that asks a refused field for something."""
    return next(value for value in (True, 7, "x", [7]) if not field.asks_nothing(value))


REFUSED = [name for name in PARAMETERS if (NOT_IN_REQUESTS.get(name) or FIELDS.get(name) or FIELDS["n"]).check is None]


@pytest.mark.parametrize("name", REFUSED)
def test_a_parameter_that_can_not_be_honoured_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(RequestError, match=name) as caught:
        SamplingParams(**{name: unlike(NOT_IN_REQUESTS.get(name) or FIELDS[name])})

    assert caught.value.param == name


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2, "min_tokens": 3}, "min_tokens"),
        ({"logprobs": -1}, "logprobs"),
        ({"stop": [""]}, "stop[0]"),
        ({"skip_clone": 3}, "skip_clone"),
        ({"guided_decoding": {"json": {}}, "structured_outputs": {"json": {}}}, "guided_decoding"),
        ({"structured_outputs": {"regexp": "a"}}, "structured_outputs.regexp"),
        ({"use_beam_search": True, "n": 2, "top_p": 0.5}, "top_p"),
    ],
)
def test_a_wrong_parameter_is_an_error_that_names_it_when_it_is_written(given: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**given)

    assert caught.value.param == param


def test_a_parameter_that_nobody_knows_is_an_error_however_it_is_given() -> None:
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=0)  # type: ignore[call-arg]
    with pytest.raises(AttributeError, match="temprature"):
        SamplingParams().temprature = 0  # type: ignore[attr-defined]


def test_parameters_that_were_changed_are_checked_again() -> None:
    params = SamplingParams()
    copy = params.clone()
    params.max_tokens = 5
    copy.top_p = 7

    assert completions("Hi", params)[0].request.sampling.max_tokens == 5
    with pytest.raises(RequestError, match="top_p"):
        completions("Hi", copy)


@pytest.mark.parametrize("given", [{}, {"json": {}, "regex": "a"}, {"json_object": False}, {"regex": 5}])
def test_a_structure_is_exactly_one_thing(given: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="structured_outputs"):
        StructuredOutputsParams(**given)


def test_a_backend_that_is_not_here_is_refused() -> None:
    with pytest.raises(RequestError, match=r"guided_decoding\.backend must be auto or guidance"):
        GuidedDecodingParams(regex="a", backend="outlines")


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("a", [("a", "a")]),
        (["a", "b"], [("a", "a"), ("b", "b")]),
        ([1, 2], [((1, 2), None)]),
        ([[1, 2], (3,)], [((1, 2), None), ((3,), None)]),
        ({"prompt": "a"}, [("a", "a")]),
        ([{"prompt_token_ids": [1]}, {"prompt_token_ids": [2], "prompt": "b"}], [((1,), None), ((2,), "b")]),
        ({"prompt": "a", "multi_modal_data": None}, [("a", "a")]),
        ([], []),
    ],
)
def test_prompts_come_in_all_shapes(prompts: Any, expected: list[Any]) -> None:
    asked = completions(prompts, SamplingParams())

    assert [(each.request.prompt, each.text) for each in asked] == expected
    assert [each.request.custom_id for each in asked] == [str(number) for number in range(len(expected))]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["a", ""], "prompt 1: prompt must be a non-empty string"),
        (["a", {"text": "b"}], "prompt 1: unknown field prompt.text"),
        ([{"prompt": "b", "multi_modal_data": {"image": 1}}], "prompt 0: multi_modal_data is not available"),
        ([{}], "prompt 0: an object needs prompt or prompt_token_ids"),
        ([[1, -2]], "prompt 0: prompt"),
        (5, "prompts must be a prompt or a list of prompts"),
        (b"a", "prompts must be a prompt or a list of prompts"),
    ],
)
def test_a_wrong_prompt_is_named_by_its_number(prompts: Any, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        completions(prompts, SamplingParams())

    assert message in str(caught.value)


def test_each_prompt_may_have_parameters_of_its_own() -> None:
    few, many = SamplingParams(max_tokens=1), SamplingParams(max_tokens=2)

    asked = completions(["a", "b", "c"], [few, many, few])

    assert [each.request.sampling.max_tokens for each in asked] == [1, 2, 1]
    with pytest.raises(RequestError, match="one for each of the 3 prompts, not 2"):
        completions(["a", "b", "c"], [few, many])
    with pytest.raises(RequestError, match="sampling_params must be SamplingParams"):
        completions(["a"], [5])  # type: ignore[list-item]
    with pytest.raises(RequestError, match='sampling_params must be SamplingParams, one or a list, not "dict"'):
        completions(["a"], {"temperature": 0})  # type: ignore[arg-type]


def test_conversations_are_one_or_many_with_tools_and_variables_for_all() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    turn = {"tools": [tool], "chat_template_kwargs": {"a": 1}, "continue_final_message": None}

    one, two = chats([USER], SamplingParams(), turn), chats([[USER], [USER]], SamplingParams(), turn)

    assert [len(one), len(two)] == [1, 2]
    assert one[0].request.messages == (USER,)
    assert two[1].request.tools is not None
    assert two[1].request.chat_template_kwargs == {"a": 1}
    with pytest.raises(RequestError, match=r"conversation 1: messages\[0\]\.role"):
        chats([[USER], [{"role": "nobody", "content": ""}]], SamplingParams(), {})


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (arguments, name)
        for arguments in (LLM_ARGUMENTS, GENERATE_ARGUMENTS, CHAT_ARGUMENTS)
        for name, field in arguments.items()
        if field.check is None
    ],
)
def test_an_argument_that_can_not_be_honoured_is_refused_by_its_name(arguments: Any, name: str) -> None:
    for value in (None, *arguments[name].neutral):
        refuse_others({name: value}, arguments, "LLM")
    with pytest.raises(ConfigError, match=name):
        refuse_others({name: unlike(arguments[name])}, arguments, "LLM")


def test_an_argument_that_nobody_knows_is_refused_with_the_one_that_was_meant() -> None:
    with pytest.raises(ConfigError, match="LLM: unknown field max_num_seq; did you mean max_num_seqs"):
        read_options({"model": "m", "max_num_seq": 3})


def test_options_are_checked_and_those_that_change_nothing_are_left_out() -> None:
    given = {"model": "m", "seed": None, "max_model_len": None, "enforce_eager": True, "extra_eos_tokens": ("a",)}

    assert read_options(given) == {"model": "m", "seed": None, "extra_eos_tokens": ("a",)}
    for name, value in (("seed", "x"), ("gpu_memory_utilization", 0), ("max_num_seqs", 0), ("model", "")):
        with pytest.raises(ConfigError, match=name):
            read_options({"model": "m", name: value})


def test_the_tables_in_the_documents_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "vllm.md").read_text(encoding="utf-8")

    assert renewed(text) == text, "run: python -m mlxq.offline.argument_table docs/vllm.md"
