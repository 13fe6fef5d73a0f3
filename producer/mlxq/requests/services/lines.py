"""Which service a line was written for, and the same line as OpenAI has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mlxq.requests import checks
from mlxq.requests.services import anthropic, bedrock, gemini
from mlxq.requests.services.mapping import Drops

_OURS = frozenset({"body", "prompt", "messages"})
_SERVICES: Mapping[str, tuple[str, Callable[[Mapping[str, Any], str, Drops], dict[str, Any]]]] = {
    "params": ("custom_id", anthropic.body_of),
    "modelInput": ("recordId", bedrock.body_of),
    "request": ("key", gemini.body_of),
}
"""By the name of what is asked: that of the id beside it, and how the rest is read."""


def is_foreign(line: Mapping[str, Any]) -> bool:
    """Whether a line was written for one of these services."""
    return _service_of(line) is not None


def as_openai(line: dict[str, Any], drops: Drops) -> dict[str, Any]:
    """The line itself, or that of another service in OpenAI's words.

    Raises:
        RequestError: it is one of those, and has a field without a counterpart.
    """
    name = _service_of(line)
    if name is None:
        return line
    id_name, body_of = _SERVICES[name]
    for other, value in line.items():
        if other not in (name, id_name) and value is not None and not drops(other, value):
            raise checks.unknown_field(other, (name, id_name))
    return {"custom_id": line.get(id_name), "body": body_of(line[name], name, drops)}


def id_beside(line: Mapping[str, Any]) -> Any:
    """The id of a line of another service; `None` if it has none."""
    name = _service_of(line)
    return None if name is None else line.get(_SERVICES[name][0])


def _service_of(line: Mapping[str, Any]) -> str | None:
    if not _OURS.isdisjoint(line):
        return None
    return next((name for name in _SERVICES if type(line.get(name)) is dict), None)
