"""What a request may ask for and what a result says: plain frozen data, shared by producers and workers.

Knows nothing of the wire format (`mlxq.requests.openai` does), of Redis, or of any model. A value that exists is valid:
whoever builds a `Request` has checked the types and ranges, so nobody behind the door checks them again.
What only the model can tell (is the prompt too long, is an id inside the vocabulary) is checked by the worker.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Endpoint = Literal["/v1/chat/completions", "/v1/completions"]
CHAT: Endpoint = "/v1/chat/completions"
COMPLETIONS: Endpoint = "/v1/completions"
FinishReason = Literal["stop", "length", "tool_calls", "abort", "error", "repetition"]
StopType = Literal[
    "eos_token",
    "stop_token",
    "stop_string",
    "max_tokens",
    "context_length",
    "repetition",
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
    "cancelled": "abort",
    "deadline": "abort",
    "error": "error",
}
"""The `finish_reason` (OpenAI's and vLLM's words) that goes with each `StopDetails.type`. Only that of an answer with
tool calls is another, `tool_calls`: it ends on a token like any other, and its `StopDetails` say on which."""


class Beam(msgspec.Struct, frozen=True, kw_only=True):
    """Beam search: `width` hypotheses are followed, the best `Sampling.n` of the finished ones are returned.

    A finished hypothesis scores the sum of its log probabilities divided by its length to the power `length_penalty`.
    `early_stopping` has transformers' meaning: true ends with `width` finished hypotheses, false once no better one is
    likely, `"never"` once no better one is possible.
    """

    width: int
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False


class RepetitionDetection(msgspec.Struct, frozen=True, kw_only=True):
    """When a text counts as looping: it ends with `min_count` copies of one pattern of tokens, whose length is between
    `min_pattern_size` and `max_pattern_size` tokens. vLLM's field and names."""

    max_pattern_size: int
    min_pattern_size: int
    min_count: int


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How one request is decoded. Names and defaults are those of vLLM's `SamplingParams` where it has the field;
    `mlxq.SamplingParams`, which programs write, is read into one of these by way of the fields of a request.

    `temperature == 0` is greedy; `top_k == 0`, `top_p == 1` and `min_p == 0` switch those filters off.
    `max_tokens is None` leaves the limit to the worker (`--default-max-tokens`); `seed is None` lets the worker
    draw one, which the result records. `timeout_s` is a limit on seconds of decoding.

    `logprobs` and `prompt_logprobs` are numbers of alternatives to report beside each token; 0 reports the token alone,
    `None` nothing. `logprob_token_ids` are reported beside the answer's tokens, too. `thinking_token_budget` limits the
    tokens of the reasoning part, `None` does not. `n` answers have the seeds `seed`, `seed + 1`, and so on.
    `allowed_token_ids is None` allows all.
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
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    bad_words: tuple[str, ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    repetition_detection: RepetitionDetection | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] = ()
    return_token_ids: bool = False
    thinking_token_budget: int | None = None
    n: int = 1
    beam: Beam | None = None


LEFT_TO_MODELS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens")
"""Attributes of `Sampling` that a model's generation_config.json may fill where a request doesn't."""


StructureKind = Literal["json_object", "json_schema", "regex", "choice", "grammar", "structural_tag"]


class Structure(msgspec.Struct, frozen=True, kw_only=True):
    """What the answer is held to. `value` is a schema (an object), a regular expression, a list of strings, a grammar
    in Lark's or EBNF syntax, `structures` (each with `begin`, `schema`, `end`) and `triggers` of a text with structural
    tags, or `None` for any JSON object. Error messages name `param`, the field that asked.
    `whitespace` is the pattern of what may stand between the parts of JSON, empty for nothing; `None` leaves it to the
    worker."""

    kind: StructureKind
    value: Any = None
    param: str
    whitespace: str | None = None


ToolMode = Literal["none", "auto", "required"]


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the model may or must call a tool. With a `name` (and the mode `required`) it must call that one."""

    mode: ToolMode = "auto"
    name: str | None = None
    parallel: bool = True


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One validated request.

    Exactly one of `messages` (chat) and `prompt` (completion) is set, as `endpoint` says. `prompt` is text, or token
    ids that the worker takes as they are. `messages` and `tools` keep the wire's shape, since chat templates are
    written against it. With `echo` the answer to a prompt begins with it, and may have no tokens of its own
    (`max_tokens == 0`). Without `add_generation_prompt` a chat's answer begins no new turn, and with
    `continue_final_message` it goes on with the last message. `left_out` are those of `LEFT_TO_MODELS` about which the
    request says nothing: `sampling` has mlxq's own defaults there, over which a worker may lay the model's.
    `content_hash` is the hex SHA-256 of what determines the answer, however it is spelled
    (`mlxq.requests.normal_form`).
    """

    custom_id: str
    endpoint: Endpoint
    sampling: Sampling
    content_hash: str
    prompt: str | tuple[int, ...] | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    tool_choice: ToolChoice = ToolChoice()
    structure: Structure | None = None
    chat_template_kwargs: dict[str, Any] = {}
    echo: bool = False
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    left_out: tuple[str, ...] = ()
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


class Alternative(msgspec.Struct, frozen=True, kw_only=True):
    """A token that could have stood in a place, and its log probability. `rank` counts from 1, the most probable; 0
    where nobody has looked. A prompt's first token follows nothing, so its `logprob` is `None`.

    A token that is no text by itself, since it holds a part of a character only, has its bytes in `token_bytes`, and in
    `token` as well, escaped (``\\xe2``).
    """

    token_id: int
    token: str
    logprob: float | None
    rank: int
    token_bytes: bytes | None = None


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """The token in one place, and the most probable ones there (`top`, by falling probability). Log probabilities are
    those of the model's own distribution, before temperature, penalties and filters, as in vLLM."""

    chosen: Alternative
    top: tuple[Alternative, ...] = ()


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that the model wants made. `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


class ChoiceError(msgspec.Struct, frozen=True, kw_only=True):
    """What killed one answer among several: a stable word, and a sentence that names the fields at fault."""

    code: str
    message: str


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One generated answer. `stop_reason` has vLLM's meaning: `None` for the primary EOS and for limits, the
    token id for any other EOS or stop id, the string for a stop string, ``repetition_detected`` for a text that loops.
    Lines have `finish_reason` in OpenAI's words: an answer that ends in ``abort`` or ``error`` says so in its
    `stop_reason` there (`mlxq.results.result_lines`).

    `text` is what is left beside `tool_calls` and `reasoning_content`. `beam_score` is there after beam search, `error`
    with the stop type ``error``.
    """

    index: int
    text: str
    finish_reason: FinishReason
    stop_reason: int | str | None
    stop_details: StopDetails
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    token_ids: tuple[int, ...] | None = None
    seed: int | None = None
    beam_score: float | None = None
    error: ChoiceError | None = None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts. `completion_tokens` counts every generated token, the end token included; `reasoning_tokens` those
    of them that are reasoning, its markers included, and `None` where the model has no such part."""

    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int | None = None

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class EosEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One member of the EOS set as results report it."""

    id: int
    token: str


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What only mlxq reports (`body.mlxq`): the EOS set that was in force, the seed that was used, where the
    seconds went, and what a resumed run compares: the hash of the request, and the worker's `default_max_tokens` where
    the request has no limit of its own. `ignored_formats` are those of the request's
    schemas that the answer wasn't held to. `generation_config` is whether the model's sampling defaults were in force,
    and `sampling_defaults` what they have filled in of the request's `left_out`. `ignore_eos` tells an empty `eos`
    that the request wanted from that of a model without end tokens."""

    eos: tuple[EosEntry, ...]
    seed: int
    content_hash: str
    queue_s: float
    prefill_s: float
    decode_s: float
    ignored_formats: tuple[str, ...] = ()
    default_max_tokens: int | None = None
    generation_config: Literal["auto", "off"] | None = None
    sampling_defaults: dict[str, float] = {}
    ignore_eos: bool = False


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
    prompt_token_ids: tuple[int, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None


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
