"""Batch lines of Anthropic, Bedrock, Gemini and OpenAI's Responses API, in the shapes of their documentation: what
they ask for here."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from mlxq.errors import RequestError
from mlxq.requests.openai import ParsedLine, parse_line, read_custom_id

Line = dict[str, Any]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": SCHEMA}}


def parsed(line: Line, **options: Any) -> ParsedLine:
    return parse_line(json.dumps(line), default_custom_id="made-up", **options)


def system(text: str) -> Line:
    return {"role": "system", "content": text}


def user(text: str) -> Line:
    return {"role": "user", "content": text}


def anthropic(**params: Any) -> Line:
    return {"custom_id": "r1", "params": {"model": "claude", "max_tokens": 9, "messages": [user("Hi")], **params}}


def bedrock(**model_input: Any) -> Line:
    return {"recordId": "CALL0000001", "modelInput": model_input}


def gemini(**request: Any) -> Line:
    return {"key": "r1", "request": {"contents": [{"parts": [{"text": "Hi"}]}], **request}}


def response(**body: Any) -> Line:
    return {"custom_id": "r1", "method": "POST", "url": "/v1/responses", "body": {"input": "Hi", **body}}


def said(text: str) -> Line:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


READ: dict[str, tuple[Line, str, Line]] = {
    "Anthropic": (
        anthropic(
            system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
            stop_sequences=["\n"],
            temperature=0.5,
            top_k=5,
            metadata={"user_id": "u"},
            stream=False,
            service_tier="auto",
            thinking={"type": "enabled", "budget_tokens": 1024},
        ),
        "r1",
        {
            "messages": [system("Be brief."), user("Hi")],
            "max_tokens": 9,
            "stop": ["\n"],
            "temperature": 0.5,
            "top_k": 5,
            "thinking_token_budget": 1024,
        },
    ),
    "Anthropic's tools": (
        anthropic(
            messages=[
                user("Rome?"),
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                        {"type": "text", "text": "Let me see."},
                        {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Rome"}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "Sun."}]},
                        {"type": "text", "text": "So?"},
                    ],
                },
            ],
            tools=[{"name": "weather", "description": "The weather.", "input_schema": SCHEMA}],
            tool_choice={"type": "any", "disable_parallel_tool_use": True},
        ),
        "r1",
        {
            "messages": [
                user("Rome?"),
                {"role": "assistant", "reasoning_content": "Hm.", "content": "Let me see.", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c1", "content": "Sun."},
                user("So?"),
            ],
            "tools": [TOOL],
            "tool_choice": "required",
            "parallel_tool_calls": False,
            "max_tokens": 9,
        },
    ),
    "Anthropic's beginning of an answer": (
        anthropic(messages=[user("Hi"), {"role": "assistant", "content": "{"}]),
        "r1",
        {
            "messages": [user("Hi"), {"role": "assistant", "content": "{"}],
            "continue_final_message": True,
            "add_generation_prompt": False,
            "max_tokens": 9,
        },
    ),
    "Bedrock with Anthropic": (
        bedrock(
            anthropic_version="bedrock-2023-05-31",
            max_tokens=1024,
            messages=[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        ),
        "CALL0000001",
        {"messages": [user("Hi")], "max_tokens": 1024},
    ),
    "Bedrock's Converse": (
        bedrock(
            system=[{"text": "Be brief."}],
            messages=[
                {"role": "user", "content": [{"text": "Rome?"}]},
                {
                    "role": "assistant",
                    "content": [{"toolUse": {"toolUseId": "c1", "name": "weather", "input": {"city": "Rome"}}}],
                },
                {"role": "user", "content": [{"toolResult": {"toolUseId": "c1", "content": [{"json": {"sun": 1}}]}}]},
            ],
            inferenceConfig={"maxTokens": 5, "temperature": 0, "topP": 0.9, "stopSequences": ["."]},
            toolConfig={
                "tools": [
                    {"toolSpec": {"name": "weather", "description": "The weather.", "inputSchema": {"json": SCHEMA}}}
                ],
                "toolChoice": {"tool": {"name": "weather"}},
            },
        ),
        "CALL0000001",
        {
            "messages": [
                system("Be brief."),
                user("Rome?"),
                {"role": "assistant", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c1", "content": '{"sun":1}'},
            ],
            "max_tokens": 5,
            "temperature": 0,
            "top_p": 0.9,
            "stop": ["."],
            "tools": [TOOL],
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
        },
    ),
    "Bedrock with Nova": (
        bedrock(
            schemaVersion="messages-v1",
            messages=[{"role": "user", "content": [{"text": "Hi"}]}],
            inferenceConfig={"maxTokens": 5, "topK": 3},
        ),
        "CALL0000001",
        {"messages": [user("Hi")], "max_tokens": 5, "top_k": 3},
    ),
    "Bedrock with Llama": (
        bedrock(prompt="Hi", max_gen_len=7, temperature=0.5),
        "CALL0000001",
        {"prompt": "Hi", "max_tokens": 7, "temperature": 0.5},
    ),
    "Bedrock with OpenAI's models": (
        bedrock(messages=[user("Hi")], max_completion_tokens=7),
        "CALL0000001",
        {"messages": [user("Hi")], "max_tokens": 7},
    ),
    "Gemini": (
        gemini(
            systemInstruction={"parts": [{"text": "Be brief."}]},
            generationConfig={
                "temperature": 0.7,
                "topP": 0.9,
                "topK": 40,
                "maxOutputTokens": 9,
                "stopSequences": ["x"],
                "candidateCount": 2,
                "seed": 3,
                "thinkingConfig": {"thinkingBudget": 5},
            },
        ),
        "r1",
        {
            "messages": [system("Be brief."), user("Hi")],
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 40,
            "max_tokens": 9,
            "stop": ["x"],
            "n": 2,
            "seed": 3,
            "thinking_token_budget": 5,
        },
    ),
    "Vertex, without a key and with underscores": (
        {
            "request": {
                "contents": [{"role": "user", "parts": [{"text": "Hi "}, {"text": "there"}]}],
                "generation_config": {"max_output_tokens": 9, "response_mime_type": "application/json"},
            }
        },
        "made-up",
        {"messages": [user("Hi there")], "max_tokens": 9, "response_format": {"type": "json_object"}},
    ),
    "Gemini's tools": (
        gemini(
            contents=[
                {"role": "user", "parts": [{"text": "Rome?"}]},
                {
                    "role": "model",
                    "parts": [{"functionCall": {"id": "c1", "name": "weather", "args": {"city": "Rome"}}}],
                },
                {"role": "user", "parts": [{"functionResponse": {"name": "weather", "response": {"sun": True}}}]},
            ],
            tools=[
                {
                    "functionDeclarations": [
                        {
                            "name": "weather",
                            "description": "The weather.",
                            "parameters": {
                                "type": "OBJECT",
                                "properties": {"city": {"type": "STRING"}},
                                "required": ["city"],
                            },
                        }
                    ]
                }
            ],
            toolConfig={"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["weather"]}},
        ),
        "r1",
        {
            "messages": [
                user("Rome?"),
                {"role": "assistant", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c1", "content": '{"sun": true}'},
            ],
            "tools": [TOOL],
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
        },
    ),
    "Gemini's schemas": (
        gemini(
            generationConfig={
                "responseMimeType": "application/json",
                "responseSchema": {
                    "type": "OBJECT",
                    "properties": {
                        "b": {"type": "INTEGER", "nullable": True},
                        "a": {"type": "ARRAY", "items": {"type": "STRING"}},
                    },
                    "propertyOrdering": ["a", "b"],
                },
            }
        ),
        "r1",
        {
            "messages": [user("Hi")],
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "response",
                    "strict": True,
                    "schema": {
                        "type": "object",
                        "properties": {
                            "a": {"type": "array", "items": {"type": "string"}},
                            "b": {"type": ["integer", "null"]},
                        },
                    },
                },
            },
        },
    ),
    "OpenAI's responses": (
        response(
            model="gpt-5",
            instructions="Be brief.",
            max_output_tokens=9,
            temperature=0.5,
            top_p=0.9,
            text={"format": {"type": "json_schema", "name": "where", "schema": SCHEMA, "strict": True}},
            reasoning={"effort": "low", "summary": "auto"},
            include=["message.output_text.logprobs"],
            top_logprobs=2,
            store=True,
            background=False,
            truncation="disabled",
            service_tier="flex",
            metadata={"k": "v"},
            previous_response_id=None,
        ),
        "r1",
        {
            "messages": [system("Be brief."), user("Hi")],
            "max_tokens": 9,
            "temperature": 0.5,
            "top_p": 0.9,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "where", "schema": SCHEMA, "strict": True},
            },
            "reasoning_effort": "low",
            "logprobs": True,
            "top_logprobs": 2,
        },
    ),
    "OpenAI's responses with tools": (
        response(
            input=[
                {"role": "system", "content": "Be brief."},
                said("Rome?"),
                {
                    "type": "reasoning",
                    "id": "rs_1",
                    "summary": [{"type": "summary_text", "text": "It thinks."}],
                    "content": [{"type": "reasoning_text", "text": "Hm."}],
                },
                {
                    "type": "message",
                    "id": "msg_1",
                    "role": "assistant",
                    "status": "completed",
                    "content": [{"type": "output_text", "text": "Let me see.", "annotations": [], "logprobs": []}],
                },
                {
                    "type": "function_call",
                    "id": "fc_1",
                    "call_id": "c1",
                    "name": "weather",
                    "arguments": '{"city": "Rome"}',
                    "status": "completed",
                },
                {"type": "function_call_output", "call_id": "c1", "output": "Sun."},
                {"role": "user", "content": "So?"},
            ],
            tools=[
                {"type": "function", "name": "weather", "description": "The weather.", "parameters": SCHEMA},
            ],
            tool_choice={"type": "function", "name": "weather"},
            parallel_tool_calls=False,
        ),
        "r1",
        {
            "messages": [
                system("Be brief."),
                user("Rome?"),
                {"role": "assistant", "reasoning_content": "Hm.", "content": "Let me see.", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c1", "content": "Sun."},
                user("So?"),
            ],
            "tools": [TOOL],
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
            "parallel_tool_calls": False,
        },
    ),
    "OpenAI's responses with two calls at once": (
        response(
            input=[
                said("Rome, twice?"),
                *[
                    {"type": "function_call", "call_id": name, "name": "weather", "arguments": '{"city": "Rome"}'}
                    for name in ("c1", "c2")
                ],
                {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "Sun."}]},
                {"type": "function_call_output", "call_id": "c2", "output": "Sun."},
            ],
            tools=[
                {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True},
            ],
        ),
        "r1",
        {
            "messages": [
                user("Rome, twice?"),
                {"role": "assistant", "tool_calls": [CALL, {**CALL, "id": "c2"}]},
                {"role": "tool", "tool_call_id": "c1", "content": "Sun."},
                {"role": "tool", "tool_call_id": "c2", "content": "Sun."},
            ],
            "tools": [
                {"type": "function", "function": {"name": "weather", "parameters": SCHEMA, "strict": True}},
            ],
        },
    ),
}


@pytest.mark.parametrize("case", READ)
def test_a_line_of_another_service_is_the_request_that_it_would_be_here(case: str) -> None:
    line, custom_id, body = READ[case]
    ours = parsed({"custom_id": custom_id, "body": body})
    theirs = parsed(line)
    assert (theirs.request.custom_id, theirs.request.content_hash) == (custom_id, ours.request.content_hash)


def test_the_properties_of_a_schema_come_in_the_order_that_gemini_was_told() -> None:
    structure = parsed(READ["Gemini's schemas"][0]).request.structure
    assert structure is not None
    assert list(structure.value["properties"]) == ["a", "b"]


REFUSED: dict[str, tuple[Line, str]] = {
    "an image": (
        anthropic(messages=[{"role": "user", "content": [{"type": "image", "source": {}}]}]),
        "params.messages[0].content[0] of the type image",
    ),
    "a tool of Anthropic's own": (anthropic(tools=[{"type": "bash_20250124", "name": "bash"}]), "params.tools[0]"),
    "a failed call": (
        anthropic(
            messages=[{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "is_error": True}]}]
        ),
        "params.messages[0].content[0].is_error",
    ),
    "servers": (anthropic(mcp_servers=[]), "params.mcp_servers"),
    "a guardrail": (
        bedrock(messages=[{"role": "user", "content": [{"guardContent": {}}]}]),
        "modelInput.messages[0].content[0].guardContent",
    ),
    "fields of one model": (
        bedrock(messages=[], additionalModelRequestFields={"x": 1}),
        "modelInput.additionalModelRequestFields",
    ),
    "a model of Amazon's": (bedrock(inputText="Hi"), "inputText"),
    "safety": (gemini(safetySettings=[{}]), "request.safetySettings"),
    "inline data": (
        gemini(contents=[{"parts": [{"inlineData": {}}]}]),
        "request.contents[0].parts[0].inlineData",
    ),
    "code": (gemini(tools=[{"codeExecution": {}}]), "request.tools[0].codeExecution"),
    "several functions": (
        gemini(toolConfig={"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["a", "b"]}}),
        "allowedFunctionNames",
    ),
    "speech": (gemini(generationConfig={"speechConfig": {}}), "request.generationConfig.speechConfig"),
    "a field beside": ({**anthropic(), "priority": 1}, "priority"),
    "an earlier response": (response(previous_response_id="resp_1"), "body.previous_response_id"),
    "a prompt of the server's": (response(prompt={"id": "pmpt_1"}), "body.prompt"),
    "a tool of the server's": (response(tools=[{"type": "web_search"}]), "body.tools[0] of the type web_search"),
    "a choice of several tools": (
        response(tool_choice={"type": "allowed_tools", "mode": "auto", "tools": []}),
        "body.tool_choice of the type allowed_tools",
    ),
    "an image of OpenAI's": (
        response(input=[{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]),
        "body.input[0].content[0] of the type input_image",
    ),
    "an item of OpenAI's": (
        response(input=[{"type": "item_reference", "id": "msg_1"}]),
        "body.input[0] of the type item_reference",
    ),
    "a sealed thought": (
        response(input=[{"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}]),
        "body.input[0].encrypted_content",
    ),
    "what is sealed": (response(include=["reasoning.encrypted_content"]), "body.include[0]"),
    "a cut": (response(truncation="auto"), "body.truncation"),
    "how much to say": (response(text={"verbosity": "low"}), "verbosity"),
    "nothing to answer": (response(input=None), "messages"),
    "a number for an input": (response(input=7), "body.input"),
    "a list for an object": (gemini(generationConfig=[]), "request.generationConfig"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_counterpart_is_refused_by_its_name(case: str) -> None:
    line, named = REFUSED[case]
    with pytest.raises(RequestError) as caught:
        parsed(line)
    assert named in caught.value.message
    assert read_custom_id(json.dumps(line).encode()) in ("r1", "CALL0000001")


def test_fields_without_a_counterpart_can_be_dropped_and_are_named() -> None:
    line = parsed(
        gemini(safetySettings=[{}], generationConfig={"maxOutputTokens": 3, "speechConfig": {}}), allow_unknown=True
    )
    assert line.payload["body"]["max_tokens"] == 3
    assert line.dropped == ("request.safetySettings", "request.generationConfig.speechConfig")


def test_what_a_response_asks_of_the_server_can_be_dropped_and_is_named() -> None:
    line = parsed(
        response(include=["reasoning.encrypted_content"], truncation="auto", max_tool_calls=3), allow_unknown=True
    )
    assert line.dropped == ("body.include", "body.truncation", "body.max_tool_calls")


@pytest.mark.parametrize("url", ["https://api.openai.com/v1/responses", "v1/responses/"])
def test_the_url_of_a_response_may_be_written_in_other_ways(url: str) -> None:
    line = parsed({**response(), "url": url})
    assert (line.payload["url"], line.asked) == ("/v1/chat/completions", "/v1/responses")


def test_a_system_message_of_all_requests_goes_before_theirs_too() -> None:
    messages = parsed(gemini(), system="Be kind.").request.messages
    assert messages == (system("Be kind."), user("Hi"))


JUNK: tuple[Any, ...] = (7, "x", [], [7], {}, {"x": 7}, True, [[]], [{}])


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to everything inside a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@pytest.mark.parametrize("case", READ)
def test_whatever_stands_anywhere_in_a_line_it_is_a_request_or_an_error(case: str) -> None:
    for way in places(READ[case][0]):
        for junk in JUNK:
            line = copy.deepcopy(READ[case][0])
            parent = functools.reduce(lambda value, key: value[key], way[:-1], line)
            parent[way[-1]] = junk
            with contextlib.suppress(RequestError):
                parsed(line)
