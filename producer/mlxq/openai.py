"""The OpenAI batch format <-> `mlxq.contract`: with `mlxq.fields`, all that knows the wire JSON.

In: one line or one decoded object becomes a `ParsedLine`, or a `RequestError` that names the field; nothing else
ever comes out, whatever goes in. A field that `mlxq.fields` doesn't list, or lists as not available yet, is
refused rather than ignored. Out: `result_line` and `failure_line` build the output lines, and a few helpers read
them back. Knows no files, no queue and no model: whether a prompt fits is for the worker to say.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from mlxq import checks
from mlxq.contract import Choice, Endpoint, Failure, Request, Result, SamplingParams
from mlxq.errors import ConfigError, RequestError
from mlxq.fields import FIELDS, MESSAGE_FIELDS

CHAT: Endpoint = "/v1/chat/completions"
COMPLETIONS: Endpoint = "/v1/completions"

MAX_LINE_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 100
"""Levels of nested lists and objects. Far below where any JSON library on the way to the worker overflows."""
MAX_CUSTOM_ID_CHARS = 512

LINE_FIELDS = ("custom_id", "id", "method", "url", "body")
"""What stands around the body; ``id`` is another name for ``custom_id``."""


@dataclass(frozen=True, slots=True)
class ParsedLine:
    """One accepted line.

    `payload` is what travels to the worker, which parses it again to an equal `request`: the canonical object
    ``{"custom_id", "url", "body"}``, its body as it was written, less nulls and permitted unknown fields.
    """

    request: Request
    payload: dict[str, Any]


# --- Lines in -------------------------------------------------------------------------------------------------


def parse_line(
    data: bytes | str,
    *,
    default_custom_id: str,
    allow_unknown: bool = False,
    defaults: Mapping[str, Any] | None = None,
) -> ParsedLine:
    """Read one input line: an OpenAI batch line or a shorthand.

    Args:
        data: the JSON text, at most `MAX_LINE_BYTES`.
        default_custom_id: the id of a line that has none.
        allow_unknown: drop unknown fields instead of refusing them.
        defaults: body fields for every line that doesn't set them; see `check_defaults`.

    Raises:
        RequestError: the line can't be accepted.
    """
    raw = _encoded(data)
    if len(raw) > MAX_LINE_BYTES:
        raise line_too_long()
    return _parse(_decoded(raw), default_custom_id, allow_unknown, defaults or {})


def parse_object(
    obj: Any,
    *,
    default_custom_id: str,
    allow_unknown: bool = False,
    defaults: Mapping[str, Any] | None = None,
) -> ParsedLine:
    """Like `parse_line`, for an object that is decoded already or was built in Python. It has no size limit.

    Raises:
        RequestError: the object can't be accepted, or is not plain JSON (NaN, a set, a loop).
    """
    # Through JSON and back, so that what follows meets JSON's types only and both ways in are one.
    return _parse(_decoded(_dumped(obj)), default_custom_id, allow_unknown, defaults or {})


def text_request(
    text: str, *, custom_id: str, chat: bool = False, defaults: Mapping[str, Any] | None = None
) -> ParsedLine:
    """A prompt in plain text: a completion, or with `chat` a conversation of one user message.

    Raises:
        RequestError: the text is empty or is not Unicode text, or a default is wrong.
    """
    body = {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
    return parse_object({"body": body}, default_custom_id=custom_id, defaults=defaults)


def check_defaults(defaults: Mapping[str, Any]) -> None:
    """Check the body fields that are to be merged under every line.

    Raises:
        ConfigError: one of them is unknown, has a bad value, or is a prompt.
    """
    if not defaults.keys().isdisjoint({"messages", "prompt"}):
        raise ConfigError("the defaults for all requests can't hold messages or a prompt")
    try:
        for name, value in _known(defaults, FIELDS, "", allow_unknown=False).items():
            FIELDS[name].read(value, name)
    except RequestError as error:
        raise ConfigError(f"bad default for all requests: {error}") from error


def content_hash(url: str, body: Mapping[str, Any]) -> str:
    """Hex SHA-256 of what determines the answer: the endpoint, and the body without its labels."""
    relevant = {name: value for name, value in body.items() if name not in FIELDS or not FIELDS[name].label}
    return hashlib.sha256(msgspec.json.encode([url, relevant], order="sorted")).hexdigest()


def read_custom_id(data: bytes) -> str | None:
    """The usable `custom_id` of an input line that was refused, if it can be read at all."""
    try:
        line = _decoded(data)
        return (_custom_id(line, default="") or None) if type(line) is dict else None
    except RequestError:
        return None


def line_too_long() -> RequestError:
    """The error for a line over `MAX_LINE_BYTES`."""
    message = f"the line is longer than {MAX_LINE_BYTES // 2**20} MiB"
    return RequestError(message, code="line_too_long", status_code=413)


def _encoded(data: bytes | str) -> bytes:
    try:
        return data.encode() if isinstance(data, str) else data
    except UnicodeEncodeError as error:
        raise _invalid_json(error) from error


def _decoded(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (ValueError, RecursionError) as error:  # DecodeError and UnicodeDecodeError are ValueErrors
        raise _invalid_json(error) from error


def _dumped(obj: Any) -> bytes:
    try:
        return json.dumps(obj, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise _invalid_json(error) from error


def _invalid_json(error: Exception) -> RequestError:
    return RequestError(f"this is not valid JSON: {error}", code="invalid_json")


def _parse(line: Any, default_custom_id: str, allow_unknown: bool, defaults: Mapping[str, Any]) -> ParsedLine:
    if type(line) is not dict:
        raise RequestError(f"a line must be a JSON object, not {checks.show(line)}", code="invalid_type")
    if checks.is_deeper_than(line, MAX_DEPTH):
        raise RequestError(f"the line is nested more than {MAX_DEPTH} levels deep", code="too_deep")
    _check_target(line)
    given = _given_body(line, allow_unknown)
    body = _known_body({**_applicable(defaults, given), **given}, allow_unknown)
    custom_id = _custom_id(line, default_custom_id)
    endpoint = _endpoint(line, body)
    payload = {"custom_id": custom_id, "url": endpoint, "body": body}
    return ParsedLine(_request(custom_id, endpoint, body), payload)


def _given_body(line: dict[str, Any], allow_unknown: bool) -> dict[str, Any]:
    """The body without nulls: what stands under ``body``, or in a shorthand all that is not a line field."""
    if line.get("body") is None:
        body = {name: value for name, value in line.items() if name not in LINE_FIELDS}
    else:
        if not allow_unknown:
            _check_beside_body(line)
        _known(line, LINE_FIELDS, "", allow_unknown)
        body = checks.an_object(line["body"], "body")
    return {name: value for name, value in body.items() if value is not None}


def _check_target(line: Mapping[str, Any]) -> None:
    """What is asked of a server that mlxq isn't; first of all, since another endpoint has other fields."""
    if line.get("method") not in (None, "POST"):
        raise checks.out_of_range("method", '"POST"', line["method"])
    if line.get("url") not in (None, CHAT, COMPLETIONS):
        raise checks.out_of_range("url", f'"{CHAT}" or "{COMPLETIONS}"', line["url"])


def _check_beside_body(line: Mapping[str, Any]) -> None:
    for name in line:
        if name in FIELDS and name not in LINE_FIELDS:
            raise RequestError(f"{name} stands beside body; it belongs inside", param=name, code="unknown_field")


def _applicable(defaults: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults for what a body leaves open. `max_tokens` is not open to one that sets its other name."""
    taken = {FIELDS[name].fills for name in body if name in FIELDS and FIELDS[name].fills}
    fields = {name: FIELDS.get(name) for name in defaults}
    return {
        name: defaults[name]
        for name, field in fields.items()
        if field is None or (field.fills not in taken and ("messages" in body or not field.chat_only))
    }


def _known_body(body: dict[str, Any], allow_unknown: bool) -> dict[str, Any]:
    """The body, its messages and their text parts without unknown fields and nulls."""
    known = _known(body, FIELDS, "", allow_unknown)
    if type(known.get("messages")) is list:
        known["messages"] = [
            _known_message(message, f"messages[{index}].", allow_unknown) if type(message) is dict else message
            for index, message in enumerate(known["messages"])
        ]
    return known


def _known_message(message: dict[str, Any], path: str, allow_unknown: bool) -> dict[str, Any]:
    known = _known(message, MESSAGE_FIELDS, path, allow_unknown)
    if type(known.get("content")) is list:
        known["content"] = [
            _known(part, ("type", "text"), f"{path}content[{index}].", allow_unknown) if _is_text(part) else part
            for index, part in enumerate(known["content"])
        ]
    return known


def _is_text(part: Any) -> bool:
    return type(part) is dict and part.get("type") == "text"


def _known(obj: Mapping[str, Any], names: Collection[str], path: str, allow_unknown: bool) -> dict[str, Any]:
    """The known fields of an object that are not null."""
    for name in obj:
        if name not in names and not allow_unknown:
            raise _unknown_field(name, names, path)
    return {name: value for name, value in obj.items() if name in names and value is not None}


def _unknown_field(name: str, names: Collection[str], path: str) -> RequestError:
    shown = name[: checks.MAX_SHOWN_CHARS]
    close = difflib.get_close_matches(shown, (*names, *LINE_FIELDS) if path == "" else names, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return RequestError(f"unknown field {path}{shown}{hint}", param=f"{path}{shown}", code="unknown_field")


def _custom_id(line: Mapping[str, Any], default: str) -> str:
    ids = {name: line[name] for name in ("custom_id", "id") if line.get(name) is not None}
    for name, value in ids.items():
        if type(value) is not str:
            raise checks.wrong_type(name, "a string in quotes", value)
        if not 1 <= len(value) <= MAX_CUSTOM_ID_CHARS:
            raise checks.out_of_range(name, f"1 to {MAX_CUSTOM_ID_CHARS} characters long", value)
    if len(set(ids.values())) > 1:
        raise RequestError("custom_id and id differ; give one of them", param="id", code="invalid_value")
    return next(iter(ids.values()), default)


def _endpoint(line: Mapping[str, Any], body: Mapping[str, Any]) -> Endpoint:
    """The endpoint that the body implies; `url` may repeat but not contradict it."""
    if ("messages" in body) == ("prompt" in body):
        raise _neither_or_both("messages" in body)
    implied = CHAT if "messages" in body else COMPLETIONS
    if line.get("url") not in (None, implied):
        has = "messages" if implied == CHAT else "a prompt"
        raise RequestError(f"url says {line['url']}, but the body has {has}", param="url", code="invalid_value")
    return implied


def _neither_or_both(both: bool) -> RequestError:
    if both:
        return RequestError("give messages or prompt, not both", param="prompt", code="invalid_value")
    return checks.missing("messages", "the line has neither messages nor a prompt")


def _request(custom_id: str, endpoint: Endpoint, body: Mapping[str, Any]) -> Request:
    values = {name: FIELDS[name].read(value, name) for name, value in body.items()}
    if endpoint == COMPLETIONS:
        _check_completion(values)
    return Request(
        custom_id=custom_id,
        endpoint=endpoint,
        sampling=_sampling(values),
        content_hash=content_hash(endpoint, body),
        prompt=values.get("prompt"),
        messages=values.get("messages"),
        tools=None if values.get("tool_choice") == "none" else values.get("tools") or None,
        chat_template_kwargs=values.get("chat_template_kwargs", {}),
        model=values.get("model"),
    )


def _check_completion(values: Mapping[str, Any]) -> None:
    for name in values:
        if FIELDS[name].chat_only:
            raise RequestError(f"{name} only goes with messages", param=name, code="unsupported_field")


def _sampling(values: Mapping[str, Any]) -> SamplingParams:
    filled: dict[str, Any] = {}
    for name, value in values.items():
        attribute = FIELDS[name].fills
        if attribute is not None and filled.setdefault(attribute, value) != value:
            names = " and ".join(other for other in values if FIELDS[other].fills == attribute)
            raise RequestError(f"{names} differ; give one of them", param=name)
    sampling = SamplingParams(**filled)
    if sampling.max_tokens is not None and sampling.min_tokens > sampling.max_tokens:
        expected = f"at most max_tokens ({sampling.max_tokens})"
        raise checks.out_of_range("min_tokens", expected, sampling.min_tokens)
    return sampling


# --- Lines out ------------------------------------------------------------------------------------------------


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


# --- Output lines read back -----------------------------------------------------------------------------------


def custom_id_of(line: Any) -> str | None:
    """The id of the request that an output line answers; `None` if this is no output line."""
    custom_id = _at(line, "custom_id")
    return custom_id if isinstance(custom_id, str) else None


def is_success(line: Any) -> bool:
    """Whether an output line holds an answer."""
    return _at(line, "response", "status_code") == 200 and _at(line, "error") is None


def content_hash_of(line: Any) -> str | None:
    """The hash of the request that an output line answers; `None` for one without an answer by mlxq."""
    value = _at(line, "response", "body", "mlxq", "content_hash")
    return value if isinstance(value, str) else None


def model_of(line: Any) -> str | None:
    """The name of the model that gave the answer in an output line; `None` for one without an answer."""
    value = _at(line, "response", "body", "model")
    return value if isinstance(value, str) else None


def stop_details_of(line: Any) -> tuple[dict[str, Any], ...]:
    """The `stop_details` of every choice of an output line. Plain objects, since a newer worker may know more."""
    choices = _at(line, "response", "body", "choices")
    details = [_at(choice, "stop_details") for choice in choices] if isinstance(choices, list) else []
    return tuple(detail for detail in details if isinstance(detail, dict))


def texts_of(line: Any) -> tuple[str, ...]:
    """The text of every choice of an output line."""
    choices = _at(line, "response", "body", "choices")
    paths = (("message", "content"), ("text",))
    values = (_at(choice, *path) for choice in choices for path in paths) if isinstance(choices, list) else ()
    return tuple(value for value in values if isinstance(value, str))


def error_code_of(line: Any) -> str | None:
    """The code of the error that an output line holds; `None` for one that holds an answer."""
    code = _at(line, "error", "code") or _at(line, "response", "body", "error", "code")
    return code if isinstance(code, str) else None


def error_message_of(line: Any) -> str | None:
    """The message of the error that an output line holds; `None` for one that holds an answer."""
    message = _at(line, "error", "message") or _at(line, "response", "body", "error", "message")
    return message if isinstance(message, str) else None


def usage_of(line: Any) -> tuple[int, int]:
    """The prompt and completion tokens of an output line; zeros where it has none."""
    counts = (_at(line, "response", "body", "usage", name) for name in ("prompt_tokens", "completion_tokens"))
    prompt, completion = (count if isinstance(count, int) else 0 for count in counts)
    return prompt, completion


def _at(value: Any, *path: str) -> Any:
    for name in path:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value
