"""What stands around the body of a request, as tables and scripts write it: its id, the method, the endpoint's URL.

Knows no fields of the body.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from mlxq.contract import CHAT, COMPLETIONS, Endpoint
from mlxq.errors import RequestError
from mlxq.requests import checks

LINE_FIELDS = ("custom_id", "id", "method", "url", "body")
"""What stands around the body; ``id`` is another name for ``custom_id``."""
MAX_CUSTOM_ID_CHARS = 512

_ENDPOINTS: Mapping[str, Endpoint] = {"chat/completions": CHAT, "completions": COMPLETIONS}


def endpoint_of(line: Mapping[str, Any]) -> Endpoint | None:
    """The endpoint that a line names; `None` if it names none.

    A URL may be whole, be without the leading slash, or have one at its end; what stands before the endpoint (``/v1``,
    Azure's ``/openai/deployments/...``) says where, and not what.

    Raises:
        RequestError: it asks for what mlxq isn't.
    """
    method, url = line.get("method"), line.get("url")
    if method is not None and (type(method) is not str or method.upper() != "POST"):
        raise checks.out_of_range("method", '"POST"', method)
    if url is None:
        return None
    parts = parts_of(url)
    for name, endpoint in _ENDPOINTS.items():
        length = name.count("/") + 1
        if "/".join(parts[-length:]) == name and not {"responses", "embeddings"} & set(parts):
            return endpoint
    raise checks.out_of_range("url", f'"{CHAT}" or "{COMPLETIONS}"', url)


def parts_of(url: Any) -> list[str]:
    """The names between the slashes of a URL's path; none of what isn't a URL."""
    try:
        path = urlsplit(url).path if type(url) is str else ""
    except ValueError:  # such as a bracket that is no IPv6 address
        return []
    return [part for part in path.split("/") if part]


def custom_id_of(line: Mapping[str, Any], default: str) -> str:
    """The id of a line, in text; a table's 17 and 17.0 are "17".

    Raises:
        RequestError: it can't be one, or the two names for it differ.
    """
    ids = {name: _id(line[name], name) for name in ("custom_id", "id") if line.get(name) is not None}
    if len(set(ids.values())) > 1:
        raise RequestError("custom_id and id differ; give one of them", param="id", code="invalid_value")
    return next(iter(ids.values()), default)


def _id(value: Any, name: str) -> str:
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is int:
        value = str(value)
    if type(value) is not str:
        raise checks.wrong_type(name, "a string or a whole number", value)
    if not 1 <= len(value) <= MAX_CUSTOM_ID_CHARS:
        raise checks.out_of_range(name, f"1 to {MAX_CUSTOM_ID_CHARS} characters long", value)
    return str(value)
