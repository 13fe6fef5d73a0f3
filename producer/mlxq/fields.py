"""Every field that a request, one of its messages or one of its tools may have, each listed once.

A field is honoured, or is a label, or is not available yet; `mlxq.openai` refuses what is in no table. The names
and meanings are OpenAI's, with vLLM's extras under vLLM's names. Knows the fields one by one and the shapes of
their values; how fields go together, and what a line looks like around them, is for `mlxq.openai`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlxq import checks
from mlxq.checks import Check
from mlxq.errors import RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field that is understood. ``null`` always means absent.

    With a `check` the field is honoured (or is a `label`, which by definition can't change the answer). Without
    one it is not available yet: only the `neutral` values, which ask for nothing, are accepted.
    `fills` names the attribute of `SamplingParams` that the field sets.
    """

    name: str
    doc: str
    check: Check | None = None
    neutral: tuple[Any, ...] = ()
    fills: str | None = None
    chat_only: bool = False
    label: bool = False

    def read(self, value: Any, param: str) -> Any:
        """The value as the contract wants it.

        Raises:
            RequestError: the value has the wrong type, is out of range, or asks for what is not available yet.
        """
        if self.check is not None:
            return self.check(value, param)
        if not any(checks.same_json(value, neutral) for neutral in self.neutral):
            raise self._unsupported(param)
        return value

    def _unsupported(self, param: str) -> RequestError:
        accepted = " or ".join(json.dumps(value) for value in (*self.neutral, None))
        message = f"{param} is not available in this version of mlxq; leave it out or set it to {accepted}"
        return RequestError(message, param=param, code="unsupported_field")


def _honoured(name: str, check: Check, doc: str, *, fills: str | None = None, chat_only: bool = False) -> Field:
    return Field(name=name, check=check, doc=doc, fills=fills, chat_only=chat_only)


def _label(name: str, check: Check, doc: str) -> Field:
    return Field(name=name, check=check, doc=doc, label=True)


def _later(name: str, *neutral: Any, doc: str) -> Field:
    return Field(name=name, neutral=neutral, doc=doc)


def _table(*fields: Field) -> Mapping[str, Field]:
    return {field.name: field for field in fields}


def _prompt(value: Any, param: str) -> str | tuple[int, ...]:
    if type(value) is str:
        return checks.filled_string(value, param)
    expected = "a non-empty string or a list of token ids"
    if type(value) is not list:
        raise checks.wrong_type(param, expected, value)
    if value and all(type(item) in (str, list) for item in value):
        message = "prompt must be one prompt, not a list of prompts: write one line per prompt"
        raise RequestError(message, param=param, code="invalid_type")
    return checks.each(checks.a_list(value, param, of="token ids", at_least=1), param, _token_id)


def _stop(value: Any, param: str) -> tuple[str, ...]:
    if type(value) is str:
        return (checks.filled_string(value, param),)
    if type(value) is not list:
        raise checks.wrong_type(param, "a string or a list of strings", value)
    return checks.each(checks.a_list(value, param, of="strings", at_most=16), param, checks.filled_string)


def _stop_token_ids(value: Any, param: str) -> tuple[int, ...]:
    return checks.each(checks.a_list(value, param, of="token ids", at_most=64), param, _token_id)


def _messages(value: Any, param: str) -> tuple[dict[str, Any], ...]:
    return checks.each(checks.a_list(value, param, of="messages", at_least=1), param, _message)


def _message(value: Any, param: str) -> dict[str, Any]:
    """One message as chat templates take it: content is one string, there even beside tool calls."""
    given = checks.an_object(value, param)
    fields = [MESSAGE_FIELDS[name] for name in given]
    read = {field.name: field.read(given[field.name], f"{param}.{field.name}") for field in fields}
    message = {field.name: read[field.name] for field in fields if field.check is not None}
    _check_message(message, param)
    return {"content": "", **message}


def _check_message(message: Mapping[str, Any], param: str) -> None:
    """What the fields of one message say about each other."""
    if "role" not in message:
        raise checks.missing(f"{param}.role", f"{param}.role is missing")
    role = message["role"]
    for name, its_role in (("tool_calls", "assistant"), ("reasoning_content", "assistant"), ("tool_call_id", "tool")):
        if name in message and role != its_role:
            text = f"{param}.{name} only goes with the role {its_role}, not with {role}"
            raise RequestError(text, param=f"{param}.{name}", code="invalid_value")
    if "content" not in message and "tool_calls" not in message:
        raise checks.missing(f"{param}.content", f"{param}.content is missing")


def _content(value: Any, param: str) -> str:
    if type(value) is str:
        return value
    if type(value) is not list:
        raise checks.wrong_type(param, "a string or a list of text parts", value)
    # A line each, as vLLM joins them.
    return "\n".join(checks.each(checks.a_list(value, param, of="text parts", at_least=1), param, _text_part))


def _text_part(value: Any, param: str) -> str:
    kind = checks.an_object(value, param).get("type")
    if kind != "text":
        message = f'{param} is of type {checks.show(kind)}; only parts of type "text" can be read'
        raise RequestError(message, param=param, code="unsupported_field")
    if "text" not in value:
        raise checks.missing(f"{param}.text", f"{param}.text is missing")
    return checks.string(value["text"], f"{param}.text")


def _tool_calls(value: Any, param: str) -> list[dict[str, Any]]:
    return list(checks.each(checks.a_list(value, param, of="tool calls", at_least=1), param, _tool_call))


def _tool_call(value: Any, param: str) -> dict[str, Any]:
    call = checks.an_object(value, param)
    arguments = _function(call, param).get("arguments")
    if type(arguments) not in (str, dict):
        raise checks.wrong_type(f"{param}.function.arguments", "a string of JSON or an object", arguments)
    return call


def _tools(value: Any, param: str) -> tuple[dict[str, Any], ...]:
    return checks.each(checks.a_list(value, param, of="tools"), param, _tool)


def _tool(value: Any, param: str) -> dict[str, Any]:
    """One tool, kept as it was written: chat templates print it, so there is no unknown field in it."""
    tool = checks.an_object(value, param)
    function = _function(tool, param)
    for name, field in FUNCTION_FIELDS.items():
        if function.get(name) is not None:
            field.read(function[name], f"{param}.function.{name}")
    return tool


def _function(holder: Mapping[str, Any], param: str) -> dict[str, Any]:
    """The ``function`` of a tool or a tool call, which has a name."""
    if holder.get("type") != "function":
        raise checks.out_of_range(f"{param}.type", '"function"', holder.get("type"))
    function = checks.an_object(holder.get("function"), f"{param}.function")
    checks.filled_string(function.get("name"), f"{param}.function.name")
    return function


def _top_k(value: Any, param: str) -> int:
    return max(0, _at_least_minus_one(value, param))


_token_id = checks.integer(0)
_int64 = checks.integer(-(2**63), 2**63 - 1)
_at_least_minus_one = checks.integer(-1)
_ROLES = {role: role for role in ("system", "user", "assistant", "tool")} | {"developer": "system"}

FUNCTION_FIELDS = _table(
    _honoured("description", checks.string, "what the function does"),
    _honoured("parameters", checks.an_object, "JSON schema of the arguments"),
    _later("strict", False, doc="hold the arguments to the schema"),
)

MESSAGE_FIELDS = _table(
    _honoured("role", checks.one_of(_ROLES), "system, developer (read as system), user, assistant or tool"),
    _honoured("content", _content, "a string, or a list of text parts, which are joined, a line each"),
    _honoured("name", checks.string, "who speaks, for templates that print it"),
    _honoured("tool_calls", _tool_calls, "the calls that the assistant made"),
    _honoured("tool_call_id", checks.string, "the call that a tool message answers"),
    _honoured("reasoning_content", checks.string, "the assistant's reasoning, for templates that print it"),
    _later("refusal", doc="the assistant's refusal"),
    _later("annotations", [], doc="citations of web searches"),
    _later("audio", doc="an earlier audio answer"),
    _later("function_call", doc="replaced by tool_calls"),
)

FIELDS = _table(
    _honoured("messages", _messages, "the conversation; makes it a chat request", chat_only=True),
    _honoured("prompt", _prompt, "text or token ids; makes it a completion request"),
    _honoured("model", checks.filled_string, "any name: a worker serves one model, and the answer says which"),
    _honoured("max_tokens", checks.integer(1), "most tokens to generate", fills="max_tokens"),
    _honoured("max_completion_tokens", checks.integer(1), "the same as max_tokens", fills="max_tokens"),
    _honoured("min_tokens", checks.integer(0), "no end of text before this many tokens", fills="min_tokens"),
    _honoured("temperature", checks.number(0), "0 is greedy", fills="temperature"),
    _honoured("top_p", checks.number(0, 1, above_low=True), "1 is off", fills="top_p"),
    _honoured("top_k", _top_k, "0 and -1 are off", fills="top_k"),
    _honoured("min_p", checks.number(0, 1), "0 is off", fills="min_p"),
    _honoured("seed", _int64, "same seed, same answer; drawn and reported if absent", fills="seed"),
    _honoured("stop", _stop, "one string, or at most 16, that end the text", fills="stop"),
    _honoured("stop_token_ids", _stop_token_ids, "at most 64 more end tokens", fills="stop_token_ids"),
    _honoured("ignore_eos", checks.boolean, "generate past the end of text", fills="ignore_eos"),
    _honoured(
        "include_stop_str_in_output",
        checks.boolean,
        "keep the stop string in the text",
        fills="include_stop_str_in_output",
    ),
    _honoured("timeout", checks.number(0, above_low=True), "seconds of decoding", fills="timeout_s"),
    _honoured("tools", _tools, "functions that the model may call", chat_only=True),
    _honoured("chat_template_kwargs", checks.an_object, "variables for the chat template", chat_only=True),
    _label("user", checks.string, "who asked"),
    _label("metadata", checks.an_object, "anything worth noting"),
    _label("safety_identifier", checks.string, "who asked, as a hash"),
    _label("prompt_cache_key", checks.string, "which prompts are alike; shared prefixes are found without it"),
    _later("n", 1, doc="number of answers"),
    _later("best_of", 1, doc="answers to choose from"),
    _later("use_beam_search", False, doc="beam search"),
    _later("length_penalty", 1, doc="weight of length in beam search"),
    _later("presence_penalty", 0, doc="against tokens that are there"),
    _later("frequency_penalty", 0, doc="against tokens by their count"),
    _later("repetition_penalty", 1, doc="against tokens that are there, prompt included"),
    _later("repetition_detection", doc="end a text that repeats itself"),
    _later("logit_bias", {}, doc="bias by token id"),
    _later("bad_words", [], doc="words never to generate"),
    _later("allowed_token_ids", doc="the only tokens to generate"),
    _later("logprobs", False, doc="log probabilities of the answer"),
    _later("top_logprobs", 0, doc="how many alternatives to report"),
    _later("prompt_logprobs", doc="log probabilities of the prompt"),
    _later("response_format", {"type": "text"}, doc="JSON answers"),
    _later("structured_outputs", doc="answers held to a grammar"),
    _later("tool_choice", "auto", "none", doc='which tool to call; "none" hides the tools'),
    _later("parallel_tool_calls", True, doc="several calls in one answer"),
    _later("functions", doc="replaced by tools"),
    _later("function_call", "auto", "none", doc="replaced by tool_choice"),
    _later("reasoning_effort", doc="how long to think; see chat_template_kwargs"),
    _later("verbosity", "medium", doc="how much to say"),
    _later("modalities", ["text"], doc="kinds of answers"),
    _later("audio", doc="audio answers"),
    _later("prediction", doc="predicted answer"),
    _later("web_search_options", doc="web search"),
    _later("echo", False, doc="repeat the prompt in the text"),
    _later("suffix", doc="text after the gap to fill"),
    _later("stream", False, doc="answers in pieces"),
    _later("stream_options", doc="how to stream"),
    _later("store", False, doc="keep the answer on the server"),
    _later("service_tier", "auto", "default", doc="OpenAI's price class"),
    _later("priority", 0, doc="order in vLLM's waiting line"),
    _later("truncate_prompt_tokens", doc="cut long prompts"),
    _later("skip_special_tokens", True, doc="leave special tokens out of the text"),
    _later("spaces_between_special_tokens", True, doc="spaces between special tokens"),
    _later("add_generation_prompt", True, doc="open the assistant's turn"),
    _later("continue_final_message", False, doc="go on with the last message"),
    _later("chat_template", doc="another chat template"),
    _later("documents", doc="documents for the chat template"),
)
"""Every field of the body, once, so that documentation can be generated from it."""
