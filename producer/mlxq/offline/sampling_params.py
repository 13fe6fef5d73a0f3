"""`SamplingParams` and what stands inside it, under vLLM's names and with its defaults.

Each parameter is a field of a request, checked and honoured as that, or may only have a value that asks for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Self

from mlxq.contract import COMPLETIONS
from mlxq.errors import RequestError
from mlxq.requests import checks
from mlxq.requests.assemble import request_of
from mlxq.requests.field import label, refused, table
from mlxq.requests.fields import FIELDS
from mlxq.requests.openai import plain_json

NOT_IN_REQUESTS = table(
    refused("detokenize", True, doc="leave the text out"),
    refused("flat_logprobs", False, doc="log probabilities in one flat object"),
    refused("prompt_logprob_token_ids", doc="tokens to score in the prompt"),
    refused("prompt_logprob_start", doc="where in the prompt to begin to score"),
    refused("output_kind", doc="answers in pieces"),
    refused("stream_interval", doc="tokens in each piece"),
    refused("extra_args", {}, doc="for extensions of vLLM"),
    refused("logits_processors", [], doc="Python functions that change the logits"),
    refused("skip_reading_prefix_cache", False, doc="compute the prompt anew"),
    refused("routed_experts_prompt_start", 0, doc="which experts the prompt went to"),
    refused("trace_decode_token_ids", doc="the tokens that are to be generated"),
    label("skip_clone", checks.boolean, "whether vLLM may share the object"),
)
"""Parameters of vLLM's class that no request has; every other one is a field of a request under the same name."""
_STRUCTURES = ("structured_outputs", "guided_decoding")


@dataclass(slots=True)
class StructuredOutputsParams:
    """What an answer is held to: exactly one of `json` (a schema, or its text), `regex`, `choice`, `grammar`,
    `json_object` and `structural_tag`.

    Raises:
        RequestError: not exactly one is given, it has a wrong value, or it can't be honoured.
    """

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
    structural_tag: str | dict[str, Any] | None = None

    def __post_init__(self) -> None:
        FIELDS["structured_outputs"].read(self.fields(), "structured_outputs")

    def fields(self) -> dict[str, Any]:
        """The request's ``structured_outputs``."""
        given = {each.name: getattr(self, each.name) for each in fields(StructuredOutputsParams)}
        return {name: plain_json(value, name) for name, value in given.items() if value not in (None, False)}


@dataclass(slots=True)
class GuidedDecodingParams(StructuredOutputsParams):
    """The same under its name in vLLM before 0.12. `backend` may be `None`, ``auto`` or ``guidance``."""

    backend: str | None = None
    disable_fallback: bool = False

    def __post_init__(self) -> None:
        if self.backend not in (None, "auto", "guidance"):
            raise checks.out_of_range("guided_decoding.backend", "auto or guidance", self.backend)
        StructuredOutputsParams.__post_init__(self)


@dataclass(slots=True)
class SamplingParams:
    """How prompts are answered. Names, order and defaults are vLLM's, meanings those of the fields of requests
    (docs/fields.md); docs/vllm.md has what is taken and what is refused.

    Raises:
        RequestError: a parameter has a wrong value, can't be honoured, or doesn't go with another; names it.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    prompt_logprob_token_ids: list[int] | None = None
    prompt_logprob_start: int | None = None
    logprob_token_ids: list[int] | None = None
    flat_logprobs: bool = False
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: Any = None
    stream_interval: int | None = None
    skip_clone: bool = False
    structured_outputs: StructuredOutputsParams | Mapping[str, Any] | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    extra_args: dict[str, Any] | None = None
    bad_words: list[str] | None = None
    skip_reading_prefix_cache: bool | None = None
    thinking_token_budget: int | None = None
    repetition_detection: Any = None
    routed_experts_prompt_start: int = 0
    trace_decode_token_ids: list[int] | None = None
    guided_decoding: GuidedDecodingParams | Mapping[str, Any] | None = None
    truncate_prompt_tokens: int | None = None
    logits_processors: list[Any] | None = None
    best_of: int | None = None
    use_beam_search: bool = False
    length_penalty: float = 1.0
    early_stopping: bool | str = False

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Whether this can be asked for: once more, since attributes may have been changed."""
        request_of("", COMPLETIONS, {"prompt": "-", **self.fields()}, "")

    def clone(self) -> Self:
        """A copy that shares nothing with this one."""
        return deepcopy(self)

    def fields(self, *, chat: bool = False) -> dict[str, Any]:
        """The fields of a request that asks for this, nulls left out.

        Args:
            chat: of a chat, where the number of alternatives has a field of its own.

        Raises:
            RequestError: a parameter can't be honoured.
        """
        given = {name: value for name in PARAMETERS if (value := getattr(self, name)) is not None}
        if self.structured_outputs is not None and self.guided_decoding is not None:
            text = "structured_outputs and guided_decoding both say what the answer must be; give one of them"
            raise RequestError(text, param="guided_decoding", code="conflicting_fields")
        for name in NOT_IN_REQUESTS.keys() & given:
            NOT_IN_REQUESTS[name].read(given.pop(name), name)
        for name in _STRUCTURES:
            if name in given:
                given["structured_outputs"] = _structure(given.pop(name))
        if is_dataclass(given.get("repetition_detection")):
            given["repetition_detection"] = _attributes(given["repetition_detection"])
        if isinstance(alternatives := given.get("logprobs"), bool):
            given["logprobs"] = alternatives = int(alternatives)
            if not alternatives:
                del given["logprobs"]
        body = {name: plain_json(value, name) for name, value in given.items()}
        if chat and "logprobs" in body:
            body |= {"logprobs": True, "top_logprobs": body["logprobs"]}
        return body


PARAMETERS = tuple(each.name for each in fields(SamplingParams))
"""The names of all parameters, in vLLM's order; those of older versions last."""


def _structure(given: Any) -> Any:
    return given.fields() if isinstance(given, StructuredOutputsParams) else given


def _attributes(given: Any) -> dict[str, Any]:
    return {each.name: getattr(given, each.name) for each in fields(given)}
