"""What a request may ask for and what a result says: plain frozen data, shared by producers and workers.

Knows nothing of the wire format (`mlxq.openai` does), of Redis, or of any model. A value that exists is valid:
whoever builds a `Request` has checked the types and ranges, so nobody behind the door checks them again.
What only the model can tell (is the prompt too long, is an id inside the vocabulary) is checked by the worker.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Endpoint = Literal["/v1/chat/completions", "/v1/completions"]
FinishReason = Literal["stop", "length", "tool_calls", "abort", "error", "repetition"]
StopType = Literal[
    "eos_token",
    "stop_token",
    "stop_string",
    "max_tokens",
    "context_length",
    "repetition",
    "tool_call",
    "cancelled",
    "deadline",
    "error",
]

FINISH_REASONS: dict[StopType, FinishReason] = {
    "eos_token": "stop",
    "stop_token": "stop",
    "stop_string": "stop",
    "max_tokens": "length",
    "context_length": "length",
    "repetition": "repetition",
    "tool_call": "tool_calls",
    "cancelled": "abort",
    "deadline": "abort",
    "error": "error",
}
"""The `finish_reason` (OpenAI's and vLLM's words) that goes with each `StopDetails.type`."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How one request is decoded. Names and defaults are vLLM's (`SamplingParams`) where it has the field.

    `temperature == 0` is greedy; `top_k == 0`, `top_p == 1` and `min_p == 0` switch those filters off.
    `max_tokens is None` leaves the limit to the worker (`--default-max-tokens`); `seed is None` lets the worker
    draw one, which the result records. `timeout_s` is a limit on seconds of decoding.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    timeout_s: float | None = None


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One validated request.

    Exactly one of `messages` (chat) and `prompt` (completion) is set, as `endpoint` says. `prompt` is text, or
    token ids that the worker takes as they are. `messages` and `tools` keep the wire's shape, since chat templates
    are written against it. `content_hash` is the hex SHA-256 of what determines the answer (endpoint and body).
    """

    custom_id: str
    endpoint: Endpoint
    sampling: SamplingParams
    content_hash: str
    prompt: str | tuple[int, ...] | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    chat_template_kwargs: dict[str, Any] = {}
    model: str | None = None


class StopDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Why and where one choice stopped; always filled.

    `token_id` and `token` name the end token (EOS or stop id), `string` the stop string that matched.
    `token_index` is the 0-based index, among the generated tokens, of the token on which the row ended;
    `None` if it ended before its first token.
    """

    type: StopType
    token_id: int | None = None
    token: str | None = None
    string: str | None = None
    token_index: int | None = None


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One generated answer. `stop_reason` has vLLM's meaning: `None` for the primary EOS and for limits, the
    token id for any other EOS or stop id, the string for a stop string."""

    index: int
    text: str
    finish_reason: FinishReason
    stop_reason: int | str | None
    stop_details: StopDetails


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts. `completion_tokens` counts every generated token, the end token included."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class EosEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One member of the EOS set as results report it."""

    id: int
    token: str


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What only mlxq reports (`body.mlxq`): the EOS set that was in force, the seed that was used, where the
    seconds went, and the hash of the request that a resumed run compares."""

    eos: tuple[EosEntry, ...]
    seed: int
    content_hash: str
    queue_s: float
    prefill_s: float
    decode_s: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one request that ran. `created` is in Unix seconds."""

    custom_id: str
    request_id: str
    endpoint: Endpoint
    model: str
    created: int
    choices: tuple[Choice, ...]
    usage: Usage
    run: RunInfo


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one request that did not run to an end.

    With a `status_code` (4xx) the request was read and rejected; without one it never ran
    (`code` is then a word such as ``worker_crashed`` or ``batch_cancelled``).
    """

    custom_id: str
    request_id: str
    code: str
    message: str
    param: str | None = None
    status_code: int | None = None
