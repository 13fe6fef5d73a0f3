"""Reads input lines: the OpenAI batch format, its shorthands and plain text.

One line or one decoded object becomes a `ParsedLine`, or a `RequestError` that names the field; nothing else ever
comes out, whatever goes in. A field that `fields` doesn't list, or lists as refused, is refused rather than
ignored. Knows no files, no queue and no model: whether a prompt fits is for the worker to say.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from mlxq.contract import CHAT, COMPLETIONS, Endpoint, Request
from mlxq.errors import ConfigError, RequestError
from mlxq.requests import checks
from mlxq.requests.assemble import request_of
from mlxq.requests.conversation import PART_FIELDS
from mlxq.requests.envelope import LINE_FIELDS, MAX_CUSTOM_ID_CHARS, custom_id_of, endpoint_of
from mlxq.requests.field import Field
from mlxq.requests.fields import FIELDS
from mlxq.requests.foreign import foreign_body, foreign_line
from mlxq.requests.normal_form import content_hash
from mlxq.requests.services import responses
from mlxq.requests.services.lines import as_openai, id_beside, is_foreign

MAX_LINE_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 100
"""Levels of nested lists and objects. Far below where any JSON library on the way to the worker overflows."""
MAX_REASON_CHARS = 200
_INDEX = re.compile(r"\[\d+\]")


@dataclass(frozen=True, slots=True)
class ParsedLine:
    """One accepted line.

    `payload` is what travels to the worker, which parses it again to an equal `request`: the canonical object
    ``{"custom_id", "url", "body"}``, its body as it was written, less nulls and permitted unknown fields. `dropped`
    names these, each once: the fields that were left out though they say something. `kept` is the user's own, which
    goes from the input to the output and nowhere else. `num_bytes` is how long the line was, or about how long the row:
    about what it takes in memory and in Redis. `mark` is by what another run may know it (`mlxq.files.known_lines`).
    `asked` is the endpoint that the line itself asks for.
    """

    request: Request
    payload: dict[str, Any]
    dropped: tuple[str, ...] = ()
    kept: Mapping[str, Any] = field(default_factory=dict)
    num_bytes: int = field(default=0, compare=False)
    mark: str | None = field(default=None, compare=False)
    asked: str = field(default="", compare=False)

    @property
    def length(self) -> int:
        """About how many bytes it takes in Redis, wherever it is from."""
        return self.num_bytes or text_length(self.payload["body"])

    def called(self, custom_id: str) -> ParsedLine:
        """The same request under another id."""
        request = msgspec.structs.replace(self.request, custom_id=custom_id)
        return replace(self, request=request, payload={**self.payload, "custom_id": custom_id})

    def with_max_tokens(self, limit: int) -> ParsedLine:
        """The same request with another limit."""
        body = {name: value for name, value in self.payload["body"].items() if name != "max_completion_tokens"}
        return self.with_body({**body, "max_tokens": limit})

    def with_body(self, body: Mapping[str, Any]) -> ParsedLine:
        """A request with another body, under the same id."""
        line = {**self.payload, "body": body}
        parsed = parse_object(line, default_custom_id=self.request.custom_id)
        return replace(parsed, kept=self.kept, num_bytes=self.num_bytes, mark=self.mark)


def parse_line(
    data: bytes | str,
    *,
    default_custom_id: str,
    allow_unknown: bool = False,
    defaults: Mapping[str, Any] | None = None,
    system: str | None = None,
) -> ParsedLine:
    """Read one input line: an OpenAI batch line or a shorthand.

    Args:
        data: the JSON text, at most `MAX_LINE_BYTES`.
        default_custom_id: the id of a line that has none.
        allow_unknown: drop unknown fields, and those that say how to serve a request, instead of refusing them.
        defaults: body fields for every line that doesn't set them; see `check_defaults`.
        system: a system message for a conversation that begins with none.

    Raises:
        RequestError: the line can't be accepted.
    """
    raw = _encoded(data)
    if len(raw) > MAX_LINE_BYTES:
        raise line_too_long(MAX_LINE_BYTES)
    parsed = _parse(_decoded(raw), default_custom_id, _Known(allow_unknown), defaults or {}, system)
    return replace(parsed, num_bytes=len(raw))


def parse_object(
    obj: Any,
    *,
    default_custom_id: str,
    allow_unknown: bool = False,
    defaults: Mapping[str, Any] | None = None,
    system: str | None = None,
) -> ParsedLine:
    """Like `parse_line`, for an object that is decoded already or was built in Python. It has no size limit.

    Raises:
        RequestError: the object can't be accepted, or is not plain JSON (NaN, a set, a loop).
    """
    return _parse(plain_json(obj), default_custom_id, _Known(allow_unknown), defaults or {}, system)


def plain_json(value: Any, param: str | None = None) -> Any:
    """What a Python program gave as JSON's types: through JSON and back, so that its way in is that of lines. Numbers
    and lists may be numpy's or pandas'.

    Raises:
        RequestError: it is not plain JSON (NaN, a set, a loop); names `param`.
    """
    try:
        return msgspec.json.decode(json.dumps(value, allow_nan=False, ensure_ascii=False, default=_plain).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise _invalid_json(error, param) from error


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
        for name, value in _Known(allow_unknown=False).fields(defaults, FIELDS, "").items():
            FIELDS[name].read(value, name)
    except RequestError as error:
        raise ConfigError(f"bad default for all requests: {error}") from error


def read_custom_id(data: bytes) -> str | None:
    """The usable `custom_id` of an input line that was refused, if it can be read at all."""
    try:
        return custom_id_in(decoded_object(data))
    except RequestError:
        return None


class _Ids(msgspec.Struct, gc=False):
    custom_id: str | None = None
    id: Any = None


_IDS = msgspec.json.Decoder(_Ids)


def plain_custom_id(data: bytes) -> str | None:
    """The `custom_id` of a line that has it under this name and as text, without reading the rest of it."""
    try:
        ids = _IDS.decode(data)
    except (ValueError, RecursionError):
        return None
    return ids.custom_id if ids.id is None and 1 <= len(ids.custom_id or "") <= MAX_CUSTOM_ID_CHARS else None


def custom_id_in(line: Mapping[str, Any]) -> str | None:
    """The `custom_id` of a decoded line, if it has a usable one."""
    try:
        return custom_id_of({"custom_id": id_beside(line)} if is_foreign(line) else line, default="") or None
    except RequestError:
        return None


def decoded_object(data: bytes) -> dict[str, Any]:
    """The JSON object on a line.

    Raises:
        RequestError: it is something else.
    """
    return _an_object(_decoded(data))


def line_too_long(max_bytes: int) -> RequestError:
    """The error for a line of more bytes than are allowed."""
    limit = f"{max_bytes // 2**20} MiB" if max_bytes % 2**20 == 0 else f"{max_bytes} bytes"
    message = f"the line is longer than {limit}"
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
        _refuse_no_numbers(raw)
        raise _invalid_json(error) from error


def _refuse_no_numbers(raw: bytes) -> None:
    """Name what Python, pandas and others write for a number that is none, if that is all that is wrong."""

    def refuse(word: str) -> Any:
        raise RequestError(
            f"this is not valid JSON: {word} is no number there; leave the field out, or write null",
            code="invalid_json",
        )

    with contextlib.suppress(ValueError, RecursionError):
        json.loads(raw, parse_constant=refuse)


def _plain(value: Any) -> Any:
    """The numbers and lists of numpy and pandas say themselves what they are in plain Python."""
    if not hasattr(value, "tolist"):
        raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
    return value.tolist()


def _invalid_json(error: Exception, param: str | None = None) -> RequestError:
    reason = str(error)[:MAX_REASON_CHARS]  # it names the way to the place, which may be a hundred levels long
    return RequestError(f"{param or 'this'} is not valid JSON: {reason}", param=param, code="invalid_json")


def _an_object(line: Any) -> dict[str, Any]:
    if type(line) is not dict:
        raise RequestError(f"a line must be a JSON object, not {checks.show(line)}", code="invalid_type")
    return line


def _parse(
    line: Any, default_custom_id: str, known: _Known, defaults: Mapping[str, Any], system: str | None
) -> ParsedLine:
    line = _an_object(line)
    if checks.is_deeper_than(line, MAX_DEPTH):
        raise RequestError(f"the line is nested more than {MAX_DEPTH} levels deep", code="too_deep")
    asked = responses.ENDPOINT if responses.is_for_responses(line) else None
    line = responses.as_chat(line, known.drops) if asked else as_openai(line, known.drops)
    if error := foreign_line(line):
        raise error
    named = endpoint_of(line)  # first of all, since another endpoint has other fields
    given = _given_body(line, known)
    if system is not None:
        given = _with_system(given, system)
    body = known.fields({**_applicable(defaults, given), **given}, FIELDS, "")
    custom_id = custom_id_of(line, default_custom_id)
    endpoint = _endpoint(named, body)
    payload = {"custom_id": custom_id, "url": endpoint, "body": body}
    request = request_of(custom_id, endpoint, body, "")  # a body in order has a normal form
    request = msgspec.structs.replace(request, content_hash=content_hash(endpoint, body))
    return ParsedLine(request, payload, tuple(known.dropped), asked=asked or endpoint)


def _given_body(line: dict[str, Any], known: _Known) -> dict[str, Any]:
    """The body without nulls: what stands under ``body``, or in a shorthand all that is not a line field."""
    if line.get("body") is None:
        body = {name: value for name, value in line.items() if name not in LINE_FIELDS}
    else:
        _check_beside_body(line, known)
        body = checks.an_object(line["body"], "body")
        if error := foreign_body(body):
            raise error
    return {name: value for name, value in body.items() if value is not None}


def _with_system(body: dict[str, Any], system: str) -> dict[str, Any]:
    """The body with a system message at the beginning of its conversation, if that begins otherwise."""
    if "prompt" in body and "messages" not in body:
        message = "a bare prompt takes no system message: make it messages, or leave --system out"
        raise RequestError(message, param="prompt", code="invalid_value")
    messages = body.get("messages")
    first = messages[0] if type(messages) is list and messages else None
    if type(first) is not dict or first.get("role") in ("system", "developer"):
        return body  # or it is refused as it stands
    return {**body, "messages": [{"role": "system", "content": system}, *(messages or ())]}


def _check_beside_body(line: Mapping[str, Any], known: _Known) -> None:
    for name, value in line.items():
        if name in LINE_FIELDS or known.drops(name, value):
            continue
        if name in FIELDS:
            raise RequestError(f"{name} stands beside body; it belongs inside", param=name, code="unknown_field")
        raise checks.unknown_field(name, LINE_FIELDS)


def _applicable(defaults: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults for what a body leaves open. `max_tokens` is not open to one that sets its other name."""
    taken = {FIELDS[name].fills for name in body if name in FIELDS and FIELDS[name].fills}
    fields = {name: FIELDS.get(name) for name in defaults}
    return {
        name: defaults[name]
        for name, field in fields.items()
        if field is None or (field.fills not in taken and ("messages" in body or not field.chat_only))
    }


class _Known:
    """Keeps of a line what is known, and notes what it drops of the rest.

    `dropped` has the names of fields, without the indices of lists, as keys.
    """

    def __init__(self, allow_unknown: bool) -> None:
        self._allow_unknown = allow_unknown
        self.dropped: dict[str, None] = {}

    def drops(self, name: str, value: Any) -> bool:
        """Whether a field may be left out; if it says something, that is noted."""
        if self._allow_unknown and value is not None:
            self.dropped[_INDEX.sub("", name)] = None
        return self._allow_unknown

    def fields(self, obj: Mapping[str, Any], fields: Mapping[str, Field], path: str) -> dict[str, Any]:
        """The known fields of an object, and of the objects in it, that are not null."""
        kept: dict[str, Any] = {}
        for name, value in obj.items():
            place = f"{path}{name}"
            if name not in fields:
                if not self.drops(place, value):
                    raise checks.unknown_field(name, fields if path else (*fields, *LINE_FIELDS), path)
            elif value is not None and not (fields[name].may_go(value) and self.drops(place, value)):
                kept[name] = self._inside(value, fields[name], place)
        return kept

    def _inside(self, value: Any, field: Field, path: str) -> Any:
        if field.inside and type(value) is list:
            return [self._inside(item, field, f"{path}[{index}]") for index, item in enumerate(value)]
        # A part of a message that is no text is refused as a whole, and not for what it has inside.
        is_other_part = field.inside is PART_FIELDS and type(value) is dict and value.get("type") != "text"
        if not field.inside or type(value) is not dict or is_other_part:
            return value
        return self.fields(value, field.inside, f"{path}.")


def _endpoint(named: Endpoint | None, body: Mapping[str, Any]) -> Endpoint:
    """The endpoint that the body implies; `url` may repeat but not contradict it."""
    if ("messages" in body) == ("prompt" in body):
        raise _neither_or_both("messages" in body)
    implied = CHAT if "messages" in body else COMPLETIONS
    if named not in (None, implied):
        has = "messages" if implied == CHAT else "a prompt"
        raise RequestError(f"url says {named}, but the body has {has}", param="url", code="invalid_value")
    return implied


def _neither_or_both(both: bool) -> RequestError:
    if both:
        return RequestError("give messages or prompt, not both", param="prompt", code="invalid_value")
    return checks.missing("messages", "the line has neither messages nor a prompt")


def text_length(value: Any) -> int:
    """About how long a value is as JSON: its texts are nearly all of what is long."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(name) + text_length(part) for name, part in value.items())
    return sum(map(text_length, value)) if isinstance(value, list) else 1
