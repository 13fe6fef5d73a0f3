"""The lines that go out: what is in them, that OpenAI's own client can read them, and that they are read back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion
from pydantic import ValidationError

from mlxq.contract import (
    CHAT,
    COMPLETIONS,
    FINISH_REASONS,
    Alternative,
    Choice,
    Endpoint,
    EosEntry,
    Failure,
    FinishReason,
    Result,
    RunInfo,
    StopDetails,
    TokenLogprob,
    ToolCall,
    Usage,
)
from mlxq.errors import RequestError
from mlxq.results import read_back, result_lines

CALL = ToolCall(id="call_1", name="add", arguments='{"a": 1}')
A = Alternative(token_id=5, token="a", logprob=-0.5, rank=1)
NO = Alternative(token_id=6, token="é", logprob=-math.inf, rank=9)
TOKENS = (TokenLogprob(chosen=A, top=(A, NO)), TokenLogprob(chosen=NO, top=(A,)), TokenLogprob(chosen=A))


def choice(index: int = 0, finish_reason: FinishReason = "stop", **fields: Any) -> Choice:
    details = StopDetails(type="stop_token", token_id=9, token="<end>", token_index=3)
    text = fields.pop("text", "hello")
    return Choice(index=index, text=text, finish_reason=finish_reason, stop_reason=9, stop_details=details, **fields)


def result(endpoint: Endpoint = CHAT, *choices: Choice, **fields: Any) -> Result:
    return Result(
        custom_id="a",
        request_id="r1",
        endpoint=endpoint,
        model="m",
        created=1_700_000_000,
        choices=choices or (choice(),),
        usage=Usage(prompt_tokens=2, completion_tokens=4),
        run=RunInfo(
            eos=(EosEntry(id=0, token="</s>"),),
            seed=5,
            content_hash="abc",
            queue_s=0.1,
            prefill_s=0.2,
            decode_s=0.3,
        ),
        **fields,
    )


def body_of(answer: Result) -> dict[str, Any]:
    """The body after it has travelled as JSON."""
    line = json.loads(json.dumps(result_lines.result_line(answer), allow_nan=False))
    body: dict[str, Any] = line["response"]["body"]
    return body


def test_formats_that_an_answer_was_not_held_to_are_named_where_there_are_some() -> None:
    run = msgspec.structs.replace(result().run, ignored_formats=("binary", "path"))

    named = body_of(msgspec.structs.replace(result(), run=run))["mlxq"]

    assert named["ignored_formats"] == ["binary", "path"]
    assert "ignored_formats" not in body_of(result())["mlxq"]


def test_a_chat_result_is_an_openai_batch_line() -> None:
    assert result_lines.result_line(result()) == {
        "id": "batch_req_r1",
        "custom_id": "a",
        "response": {
            "status_code": 200,
            "request_id": "r1",
            "body": {
                "id": "chatcmpl-r1",
                "object": "chat.completion",
                "created": 1_700_000_000,
                "model": "m",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "hello"},
                        "logprobs": None,
                        "finish_reason": "stop",
                        "stop_reason": 9,
                        "stop_details": {
                            "type": "stop_token",
                            "token_id": 9,
                            "token": "<end>",
                            "string": None,
                            "token_index": 3,
                        },
                    }
                ],
                "usage": {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6},
                "mlxq": {
                    "eos": [{"id": 0, "token": "</s>"}],
                    "seed": 5,
                    "content_hash": "abc",
                    "queue_s": 0.1,
                    "prefill_s": 0.2,
                    "decode_s": 0.3,
                },
            },
        },
        "error": None,
    }


def test_a_completion_result_holds_text() -> None:
    body = result_lines.result_line(result(COMPLETIONS))["response"]["body"]
    assert (body["id"], body["object"]) == ("cmpl-r1", "text_completion")
    assert body["choices"][0]["text"] == "hello"
    assert "message" not in body["choices"][0]


def test_several_answers_stand_in_order_each_with_its_own_seed_and_details() -> None:
    choices = body_of(result(CHAT, *(choice(index, seed=7 + index, text=str(index)) for index in range(3))))["choices"]

    assert [(each["index"], each["seed"], each["message"]["content"]) for each in choices] == [
        (0, 7, "0"),
        (1, 8, "1"),
        (2, 9, "2"),
    ]
    assert all(each["stop_details"]["type"] == "stop_token" for each in choices)


def test_a_beam_reports_its_score() -> None:
    [beam] = body_of(result(COMPLETIONS, choice(beam_score=-1.5)))["choices"]

    assert beam["beam_score"] == -1.5


def test_the_log_probabilities_of_a_chat_are_in_openais_shape() -> None:
    [each] = body_of(result(CHAT, choice(logprobs=TOKENS)))["choices"]

    a = {"token": "a", "logprob": -0.5, "bytes": [97]}
    impossible = {"token": "é", "logprob": -9999.0, "bytes": [0xC3, 0xA9]}
    assert each["logprobs"]["content"] == [
        {**a, "top_logprobs": [a, impossible]},
        {**impossible, "top_logprobs": [a]},
        {**a, "top_logprobs": []},
    ]


def test_a_token_that_is_no_text_by_itself_has_its_own_bytes() -> None:
    part = Alternative(token_id=9, token="\\xf0\\x9f", token_bytes=b"\xf0\x9f", logprob=-1.0, rank=1)

    (choice_,) = body_of(result(CHAT, choice(logprobs=(TokenLogprob(chosen=part),))))["choices"]

    assert choice_["logprobs"]["content"][0]["token"] == r"\xf0\x9f"
    assert choice_["logprobs"]["content"][0]["bytes"] == [0xF0, 0x9F]


def test_the_log_probabilities_of_a_completion_are_in_openais_shape() -> None:
    [each] = body_of(result(COMPLETIONS, choice(logprobs=TOKENS)))["choices"]

    assert each["logprobs"] == {
        "tokens": ["a", "é", "a"],
        "token_logprobs": [-0.5, -9999.0, -0.5],
        "top_logprobs": [{"a": -0.5, "é": -9999.0}, {"é": -9999.0, "a": -0.5}, {"a": -0.5}],
        "text_offset": [0, 1, 2],
    }


def test_offsets_are_those_of_the_text_where_tokens_share_a_character() -> None:
    pieces = [(r"a\xf0\x9f", b"a\xf0\x9f"), (r"\x90", b"\x90"), (r"\xac", b"\xac"), ("é", None), ("!", None)]
    tokens = tuple(
        TokenLogprob(chosen=Alternative(token_id=9, token=token, token_bytes=utf8, logprob=-1.0, rank=1))
        for token, utf8 in pieces
    )

    [each] = body_of(result(COMPLETIONS, choice(logprobs=tokens)))["choices"]

    assert each["logprobs"]["text_offset"] == [0, 1, 1, 2, 3], "in a🐬é!"


def test_of_two_tokens_with_one_text_the_chosen_one_is_reported() -> None:
    other = Alternative(token_id=7, token="a", logprob=-0.1, rank=1)
    [each] = body_of(result(COMPLETIONS, choice(logprobs=(TokenLogprob(chosen=A, top=(other,)),))))["choices"]

    assert each["logprobs"]["top_logprobs"] == [{"a": -0.5}]


def test_an_answer_without_tokens_has_empty_log_probabilities() -> None:
    [chat] = body_of(result(CHAT, choice(logprobs=())))["choices"]
    [completion] = body_of(result(COMPLETIONS, choice(logprobs=())))["choices"]

    assert chat["logprobs"]["content"] == []
    assert completion["logprobs"]["text_offset"] == []


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS])
def test_what_is_known_of_the_prompt_stands_where_vllm_has_it(endpoint: Endpoint) -> None:
    # given a result with several choices and all about the prompt
    choices = (choice(0, token_ids=(5, 6)), choice(1, token_ids=(5,)))
    answer = result(endpoint, *choices, prompt_token_ids=(1, 5), prompt_logprobs=(None, TOKENS[0]))

    # when it is rendered
    body = body_of(answer)

    # then a chat has it once in the body, and a completion once in the first choice
    holder = body if endpoint == CHAT else body["choices"][0]
    assert holder["prompt_token_ids"] == [1, 5]
    assert holder["prompt_logprobs"] == [
        None,
        {
            "5": {"logprob": -0.5, "rank": 1, "decoded_token": "a"},
            "6": {"logprob": -9999.0, "rank": 9, "decoded_token": "é"},
        },
    ]
    assert [each["token_ids"] for each in body["choices"]] == [[5, 6], [5]]
    assert "prompt_token_ids" not in body["choices"][1]


def test_a_message_that_only_calls_tools_has_no_content() -> None:
    [each] = body_of(result(CHAT, choice(0, "tool_calls", text="", tool_calls=(CALL,))))["choices"]

    function = {"name": "add", "arguments": '{"a": 1}'}
    assert each["message"] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
    }


def test_text_beside_calls_and_reasoning_is_kept() -> None:
    [each] = body_of(result(CHAT, choice(0, "tool_calls", tool_calls=(CALL,), reasoning_content="hm")))["choices"]

    assert (each["message"]["content"], each["message"]["reasoning_content"]) == ("hello", "hm")


def test_an_empty_text_without_calls_stays_a_text() -> None:
    [each] = body_of(result(CHAT, choice(text="")))["choices"]

    assert each["message"] == {"role": "assistant", "content": ""}


EXTRAS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "with log probabilities": {"logprobs": TOKENS},
    "with log probabilities of nothing": {"logprobs": ()},
    "with token ids and a seed": {"token_ids": (1, 2), "seed": 3},
    "with a beam's score": {"beam_score": -0.25},
}
OF_CHATS: Mapping[str, Mapping[str, Any]] = {
    "with calls": {"tool_calls": (CALL, CALL), "text": "", "finish_reason": "tool_calls"},
    "with text and calls": {"tool_calls": (CALL,), "finish_reason": "tool_calls"},
    "with reasoning": {"reasoning_content": "hm"},
}
ABOUT_PROMPT: Mapping[str, Any] = {"prompt_token_ids": (1, 5), "prompt_logprobs": (None, TOKENS[1])}


@pytest.mark.parametrize("shape", [*EXTRAS, *OF_CHATS])
def test_openais_client_reads_every_shape_of_a_chat(shape: str) -> None:
    fields = {**EXTRAS, **OF_CHATS}[shape]
    body = body_of(result(CHAT, choice(0, **fields), choice(1, "length", text="two"), **ABOUT_PROMPT))

    read = ChatCompletion.model_validate(body)

    # What was read holds all that was written, mlxq's own fields too.
    assert read.model_dump(exclude_unset=True) == body
    assert [each.message.content for each in read.choices] == [fields.get("text", "hello") or None, "two"]


@pytest.mark.parametrize("shape", EXTRAS)
def test_openais_client_reads_every_shape_of_a_completion(shape: str) -> None:
    body = body_of(result(COMPLETIONS, choice(0, **EXTRAS[shape]), choice(1, "length"), **ABOUT_PROMPT))

    read = Completion.model_validate(body)

    assert read.model_dump(exclude_unset=True) == body


def test_openais_client_reads_the_calls() -> None:
    [each] = ChatCompletion.model_validate(body_of(result(CHAT, choice(0, "tool_calls", tool_calls=(CALL,))))).choices

    assert each.message.tool_calls is not None
    assert [json.loads(call.function.arguments) for call in each.message.tool_calls if call.type == "function"] == [
        {"a": 1}
    ]


@pytest.mark.parametrize("finish_reason", ["abort", "error"])
@pytest.mark.parametrize(("endpoint", "read_by"), [(CHAT, ChatCompletion), (COMPLETIONS, Completion)])
def test_openais_types_read_an_answer_that_is_not_whole_and_its_line_says_so(
    endpoint: Endpoint, read_by: type[ChatCompletion | Completion], finish_reason: FinishReason
) -> None:
    line = result_lines.result_line(result(endpoint, choice(0, finish_reason), choice(1)))
    body = line["response"]["body"]

    read = read_by.model_validate(body)

    assert read.model_dump(exclude_unset=True) == body
    assert [(each["finish_reason"], each["stop_reason"]) for each in body["choices"]] == [
        ("length", finish_reason),
        ("stop", 9),
    ]


def test_every_other_finish_reason_is_written_as_it_is() -> None:
    others: list[FinishReason] = [*sorted(set(FINISH_REASONS.values()) - {"abort", "error"}), "tool_calls"]
    choices = body_of(result(CHAT, *(choice(i, reason) for i, reason in enumerate(others))))["choices"]
    assert [each["finish_reason"] for each in choices] == others


@pytest.mark.parametrize("finish_reason", ["repetition"])
def test_a_finish_reason_that_openai_does_not_have_is_all_that_its_types_mind(finish_reason: FinishReason) -> None:
    # given an answer with one of vLLM's reasons, which only a request with vLLM's own field can get
    body = body_of(result(CHAT, choice(0, finish_reason)))

    # when it is validated, which the client itself does not do
    with pytest.raises(ValidationError) as caught:
        ChatCompletion.model_validate(body)

    # then nothing else is wrong with it, and the client reads it
    assert [error["loc"] for error in caught.value.errors()] == [("choices", 0, "finish_reason")]
    assert ChatCompletion.construct(**body).choices[0].finish_reason == finish_reason


def test_a_rejected_request_is_a_response_with_an_error_body() -> None:
    error = RequestError("no", param="top_p", code="out_of_range", status_code=422)
    line = result_lines.failure_line(result_lines.rejection(error, custom_id="a", request_id="r1"))
    detail = {"message": "no", "type": "invalid_request_error", "param": "top_p", "code": "out_of_range"}
    assert line == {
        "id": "batch_req_r1",
        "custom_id": "a",
        "response": {"status_code": 422, "request_id": "r1", "body": {"error": detail}},
        "error": None,
    }


def test_a_request_that_never_ran_has_no_response() -> None:
    failure = Failure(custom_id="a", request_id="r1", code="worker_crashed", message="three times")
    assert result_lines.failure_line(failure) == {
        "id": "batch_req_r1",
        "custom_id": "a",
        "response": None,
        "error": {"code": "worker_crashed", "message": "three times"},
    }


def test_the_helpers_read_output_lines_back() -> None:
    good = result_lines.result_line(result())
    rejected = result_lines.failure_line(Failure(custom_id="b", request_id="r", code="c", message="m", status_code=400))
    never_ran = result_lines.failure_line(Failure(custom_id="c", request_id="r", code="c", message="m"))
    lines = (good, rejected, never_ran)
    assert [read_back.custom_id_of(line) for line in lines] == ["a", "b", "c"]
    assert [read_back.is_success(line) for line in lines] == [True, False, False]
    assert [read_back.content_hash_of(line) for line in lines] == ["abc", None, None]
    assert [read_back.error_code_of(line) for line in lines] == [None, "c", "c"]
    assert [read_back.usage_of(line) for line in lines] == [(2, 4), (0, 0), (0, 0)]
    assert [[details["type"] for details in read_back.stop_details_of(line)] for line in lines] == [
        ["stop_token"],
        [],
        [],
    ]


@pytest.mark.parametrize("line", [None, [], {"custom_id": 1, "response": []}, {"response": {"body": {"choices": 1}}}])
def test_the_helpers_make_nothing_of_foreign_lines(line: Any) -> None:
    assert read_back.custom_id_of(line) is None
    assert not read_back.is_success(line)
    assert read_back.content_hash_of(line) is None
    assert read_back.stop_details_of(line) == ()
    assert read_back.error_code_of(line) is None
    assert read_back.usage_of(line) == (0, 0)


def test_the_texts_and_calls_of_every_answer_are_read_back() -> None:
    choices = (choice(0, text="one"), choice(1, "tool_calls", text="", tool_calls=(CALL,)), choice(2, text="three"))
    line = result_lines.result_line(result(CHAT, *choices))

    assert read_back.texts_of(line) == ("one", "three")
    assert [read_back.text_of(each) for each in read_back.choices_of(line)] == ["one", None, "three"]
    assert [read_back.calls_of(each) for each in read_back.choices_of(line)] == [
        (),
        ({"name": "add", "arguments": '{"a": 1}'},),
        (),
    ]


@pytest.mark.parametrize("ignore_eos", [True, False])
def test_an_empty_set_of_end_tokens_says_whether_the_request_wanted_that(ignore_eos: bool) -> None:
    run = msgspec.structs.replace(result().run, eos=(), ignore_eos=ignore_eos)
    assert body_of(msgspec.structs.replace(result(), run=run))["mlxq"]["ignore_eos"] is ignore_eos
    assert "ignore_eos" not in body_of(result())["mlxq"]
