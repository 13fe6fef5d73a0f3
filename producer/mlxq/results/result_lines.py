"""Builds output lines: an answer in OpenAI's shape with vLLM's extras, or a failure.

Knows what a `Result` and a `Failure` look like in JSON, and nothing of how they came about.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from mlxq.contract import CHAT, Choice, Failure, FinishReason, Result, RunInfo, ToolCall, Usage
from mlxq.errors import RequestError
from mlxq.results import logprobs_json
from mlxq.results.read_back import CHAT_OBJECT

_CUT: Final[tuple[FinishReason, ...]] = ("abort", "error")
"""vLLM's words for answers that are not whole, which OpenAI's types don't have: to those they are of limited length."""


def result_line(result: Result) -> dict[str, Any]:
    """The output line of a request that ran."""
    chat = result.endpoint == CHAT
    about_prompt = _about_prompt(result)
    choices = [_choice(choice, chat) for choice in result.choices]
    if not chat:
        # As in vLLM, but for the first choice only: the prompt of all is one.
        choices[0] |= about_prompt
    body = {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{result.request_id}",
        "object": CHAT_OBJECT if chat else "text_completion",
        "created": result.created,
        "model": result.model,
        "choices": choices,
        "usage": {
            "prompt_tokens": result.usage.prompt_tokens,
            "completion_tokens": result.usage.completion_tokens,
            "total_tokens": result.usage.total_tokens,
            **_usage_details(result.usage),
        },
        **(about_prompt if chat else {}),
        "mlxq": _about_run(result.run),
    }
    response = {"status_code": 200, "request_id": result.request_id, "body": body}
    return _output_line(result.custom_id, result.request_id, response=response)


def _about_run(run: RunInfo) -> dict[str, Any]:
    """What only mlxq reports. msgspec leaves tuples as they are; a line is plain JSON, before it travels as after."""
    about = {**msgspec.to_builtins(run), "eos": [msgspec.to_builtins(end) for end in run.eos]}
    ignored, limit = list(about.pop("ignored_formats")), about.pop("default_max_tokens")
    mode, defaults = about.pop("generation_config"), about.pop("sampling_defaults")
    ignores_eos = about.pop("ignore_eos")
    return about | _given(
        ignored_formats=ignored or None,
        default_max_tokens=limit,
        generation_config=mode,
        sampling_defaults=defaults or None,
        ignore_eos=None if run.eos else ignores_eos,
    )


def failure_line(failure: Failure) -> dict[str, Any]:
    """The output line of a request that was rejected (a response with a 4xx) or never ran (no response)."""
    if failure.status_code is None:
        error = {"code": failure.code, "message": failure.message}
        return _output_line(failure.custom_id, failure.request_id, error=error)
    detail = {
        "message": failure.message,
        "type": "invalid_request_error",
        "param": failure.param,
        "code": failure.code,
    }
    body = {"error": detail}
    response = {"status_code": failure.status_code, "request_id": failure.request_id, "body": body}
    return _output_line(failure.custom_id, failure.request_id, response=response)


def retried_line(line: Mapping[str, Any], content_hash: str, max_tokens: int) -> dict[str, Any]:
    """The output line of a request that was asked again with a larger limit than it has itself: it answers the request
    as it is, and says which limit it had. A failure stays as it is."""
    body = (line.get("response") or {}).get("body") or {}
    if "mlxq" not in body:
        return dict(line)
    about = {**body["mlxq"], "content_hash": content_hash, "raised_max_tokens": max_tokens}
    return {**line, "response": {**line["response"], "body": {**body, "mlxq": about}}}


def rejection(error: RequestError, *, custom_id: str, request_id: str) -> Failure:
    """The failure that answers a request which was refused."""
    return Failure(
        custom_id=custom_id,
        request_id=request_id,
        code=error.code,
        message=error.message,
        param=error.param,
        status_code=error.status_code,
    )


def _choice(choice: Choice, chat: bool) -> dict[str, Any]:
    """One choice: OpenAI's fields, vLLM's `stop_reason` and `token_ids`, and mlxq's own. What was not asked for and has
    no place in OpenAI's shape is left out."""
    is_cut = choice.finish_reason in _CUT
    logprobs_of = logprobs_json.of_chat if chat else logprobs_json.of_completion
    return {
        "index": choice.index,
        **({"message": _message(choice)} if chat else {"text": choice.text}),
        "logprobs": None if choice.logprobs is None else logprobs_of(choice.logprobs),
        "finish_reason": "length" if is_cut else choice.finish_reason,
        "stop_reason": choice.finish_reason if is_cut else choice.stop_reason,
        "stop_details": msgspec.to_builtins(choice.stop_details),
        **_given(
            seed=choice.seed,
            beam_score=choice.beam_score,
            token_ids=_as_list(choice.token_ids),
            error=None if choice.error is None else msgspec.to_builtins(choice.error),
        ),
    }


def _message(choice: Choice) -> dict[str, Any]:
    """The assistant's message. As in OpenAI's answers, one that only calls tools has no content."""
    calls = [_tool_call(call) for call in choice.tool_calls]
    return {
        "role": "assistant",
        "content": (choice.text or None) if calls else choice.text,
        **_given(reasoning_content=choice.reasoning_content, tool_calls=calls or None),
    }


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _about_prompt(result: Result) -> dict[str, Any]:
    """What was asked for about the prompt, under vLLM's names."""
    logprobs = result.prompt_logprobs
    return _given(
        prompt_token_ids=_as_list(result.prompt_token_ids),
        prompt_logprobs=None if logprobs is None else logprobs_json.of_prompt(logprobs),
    )


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _usage_details(usage: Usage) -> dict[str, Any]:
    """OpenAI's place for the tokens of the reasoning part."""
    if usage.reasoning_tokens is None:
        return {}
    return {"completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens}}


def _as_list(ids: tuple[int, ...] | None) -> list[int] | None:
    return None if ids is None else list(ids)


def _output_line(
    custom_id: str, request_id: str, *, response: dict[str, Any] | None = None, error: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"id": f"batch_req_{request_id}", "custom_id": custom_id, "response": response, "error": error}
