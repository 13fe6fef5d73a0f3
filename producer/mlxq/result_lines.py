"""Builds output lines: an answer in OpenAI's shape with vLLM's extras, or a failure.

Knows what a `Result` and a `Failure` look like in JSON, and nothing of how they came about.
"""

from __future__ import annotations

from typing import Any

import msgspec

from mlxq.contract import CHAT, Choice, Failure, Result
from mlxq.errors import RequestError


def result_line(result: Result) -> dict[str, Any]:
    """The output line of a request that ran."""
    chat = result.endpoint == CHAT
    body = {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{result.request_id}",
        "object": "chat.completion" if chat else "text_completion",
        "created": result.created,
        "model": result.model,
        "choices": [_choice(choice, chat) for choice in result.choices],
        "usage": {
            "prompt_tokens": result.usage.prompt_tokens,
            "completion_tokens": result.usage.completion_tokens,
            "total_tokens": result.usage.total_tokens,
        },
        # msgspec leaves tuples as they are; a line is plain JSON, before it travels as after.
        "mlxq": {**msgspec.to_builtins(result.run), "eos": [msgspec.to_builtins(end) for end in result.run.eos]},
    }
    response = {"status_code": 200, "request_id": result.request_id, "body": body}
    return _output_line(result.custom_id, result.request_id, response=response)


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
    answer = {"message": {"role": "assistant", "content": choice.text}} if chat else {"text": choice.text}
    return {
        "index": choice.index,
        **answer,
        "logprobs": None,
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
        "stop_details": msgspec.to_builtins(choice.stop_details),
    }


def _output_line(
    custom_id: str, request_id: str, *, response: dict[str, Any] | None = None, error: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"id": f"batch_req_{request_id}", "custom_id": custom_id, "response": response, "error": error}
