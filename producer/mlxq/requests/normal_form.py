"""Says which requests are the same: a hash of what determines the answer, however that is spelled.

Numbers are numbers (0 is 0.0), a field is the same under its other name, what is asked for by default need not be
said, and labels count for nothing. Expects the known fields of a valid request, and knows no line around them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from mlxq.contract import Sampling
from mlxq.requests import checks
from mlxq.requests.fields import FIELDS

_OTHER_NAMES = {"max_completion_tokens": "max_tokens"}
_NEVER_COUNT = frozenset({"model", "best_of"})
"""Beside labels: a worker serves one model whatever the request calls it, and all answers are returned."""
_UNSAID = {
    "logprobs": False,
    "top_logprobs": 0,
    "use_beam_search": False,
    "chat_template_kwargs": {},
    "echo": False,
    "add_generation_prompt": True,
    "continue_final_message": False,
}
"""Values that ask for what a request without the field gets, of fields that no `Sampling` has."""
_STRUCTURES = ("response_format", "structured_outputs")
_HIDDEN_BY_NO_CHOICE = ("tools", "tool_choice", "parallel_tool_calls")
_SAMPLING = Sampling()


def content_hash(url: str, body: Mapping[str, Any]) -> str:
    """Hex SHA-256 of what determines the answer: the endpoint and the body in normal form.

    Raises:
        RequestError: a field has a wrong value.
    """
    hides_tools = body.get("tool_choice") == "none"
    normal: dict[str, Any] = {}
    for name, value in body.items():
        if not (hides_tools and name in _HIDDEN_BY_NO_CHOICE):
            normal |= _normal_field(name, value)
    return _hash_of(url, _plain_numbers(normal))


def spelled_hash(url: str, body: Mapping[str, Any]) -> str:
    """The hash that mlxq 0.1 wrote for a request: of the body as it was spelled, less its labels. Result files have it,
    and are compared with it where `content_hash` differs."""
    relevant = {name: value for name, value in body.items() if name not in FIELDS or not FIELDS[name].label}
    return _hash_of(url, relevant)


def _hash_of(url: str, body: Mapping[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode([url, body], order="sorted")).hexdigest()


def _normal_field(name: str, value: Any) -> dict[str, Any]:
    """One field in normal form, or nothing if it asks for nothing."""
    field = FIELDS.get(name)
    if field is None:  # of another release of mlxq
        return {name: value}
    if field.label or name in _NEVER_COUNT or field.asks_nothing(value) or checks.same_json(value, _UNSAID.get(name)):
        return {}
    read = field.read(value, name)
    if name in _STRUCTURES:
        return {} if read is None else {"structure": [read.kind, read.value, read.whitespace]}
    if field.fills is not None:
        if read == getattr(_SAMPLING, field.fills):
            return {}
        return {_OTHER_NAMES.get(name, name): [value] if name == "stop" and type(value) is str else value}
    return {name: read if name == "prompt" else value}


def _plain_numbers(value: Any) -> Any:
    """The same JSON, with whole numbers as integers."""
    if type(value) is float and value.is_integer():
        return int(value)
    if type(value) is dict:
        return {name: _plain_numbers(inner) for name, inner in value.items()}
    if type(value) in (list, tuple):
        if set(map(type, value)) <= {int, str}:  # as a prompt of token ids is, and there may be millions
            return list(value)
        return [_plain_numbers(inner) for inner in value]
    return value
