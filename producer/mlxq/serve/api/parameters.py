"""Reads what a request says in its path, its query and its JSON body, each field by its own rule.

What is wrong is an error that names the field; what is not understood is refused, as everywhere in mlxq.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request

from mlxq.serve.api.errors import ApiError, not_found

MAX_BODY_BYTES = 2**20
MIN_EXPIRY_S, MAX_EXPIRY_S = 3600, 2592000
MIN_WINDOW_S = 24 * 3600
MAX_METADATA, MAX_METADATA_KEY, MAX_METADATA_VALUE = 16, 64, 512
_HOURS = {"h": 1, "d": 24}
_WINDOW = re.compile(r"(\d{1,5})([hd])")
_FILE_ID = re.compile(r"file-[0-9a-f]{32}")
_BATCH_ID = re.compile(r"batch_[0-9a-f]{32}")


def file_id_of(request: Request) -> str:
    """The id in the path, if it can be one of ours at all."""
    file_id = str(request.path_params["file_id"])
    if not _FILE_ID.fullmatch(file_id):
        raise not_found("File", file_id)
    return file_id


def batch_id_of(request: Request) -> str:
    batch_id = str(request.path_params["batch_id"])
    if not _BATCH_ID.fullmatch(batch_id):
        raise not_found("Batch", batch_id)
    return batch_id


async def json_body(
    request: Request, known: Collection[str] | None, *, max_bytes: int = MAX_BODY_BYTES
) -> dict[str, Any]:
    """The JSON object in the body, with no other fields than those that are known; `None` leaves that to others.

    Raises:
        ApiError: it is something else, or too long.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError("Send JSON, with the header Content-Type: application/json.", code="invalid_content_type")
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > max_bytes:
            raise ApiError(f"The body is longer than {max_bytes} bytes.", status_code=413, code="body_too_large")
    try:
        body = msgspec.json.decode(bytes(data))
    except (ValueError, RecursionError) as error:
        raise ApiError("The body is not valid JSON.", code="invalid_json") from error
    if not isinstance(body, dict):
        raise ApiError("The body must be a JSON object.", code="invalid_type")
    if known is not None:
        refuse_unknown(body, known)
    return body


def refuse_unknown(fields: Mapping[str, Any], known: Collection[str]) -> None:
    for name in fields:
        if name not in known:
            raise ApiError(f"Unknown parameter: '{name[:100]}'.", param=name[:100], code="unknown_parameter")


def text_of(body: Mapping[str, Any], name: str) -> str:
    """A field that must be there."""
    value = body.get(name)
    if value is None:
        raise ApiError(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    if not isinstance(value, str):
        raise ApiError(f"{name} must be a string.", param=name, code="invalid_type")
    return value


def window_of(text: str) -> int:
    """A completion window in seconds: 24h, or a longer one in hours or days."""
    found = _WINDOW.fullmatch(text)
    seconds = int(found[1]) * _HOURS[found[2]] * 3600 if found else 0
    if seconds < MIN_WINDOW_S:
        message = "completion_window must be 24h, or longer, such as 72h or 7d."
        raise ApiError(message, param="completion_window", code="invalid_value")
    return seconds


def metadata_of(value: Any) -> dict[str, str] | None:
    """OpenAI's pairs of texts."""
    if value is None:
        return None
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ApiError("metadata must be an object of strings.", param="metadata", code="invalid_type")
    if len(value) > MAX_METADATA:
        raise ApiError(f"metadata may have {MAX_METADATA} pairs at most.", param="metadata", code="invalid_value")
    for key, text in value.items():
        if len(key) > MAX_METADATA_KEY or len(text) > MAX_METADATA_VALUE:
            message = f"keys of metadata have {MAX_METADATA_KEY} characters at most, values {MAX_METADATA_VALUE}."
            raise ApiError(message, param="metadata", code="invalid_value")
    return value


def expiry_of(value: Any, param: str) -> int | None:
    """The seconds of an expiry policy: ``{"anchor": "created_at", "seconds": ...}``; in a form they are text."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ApiError(f"{param} must be an object.", param=param, code="invalid_type")
    refuse_unknown({f"{param}.{name}": None for name in value}, {f"{param}.anchor", f"{param}.seconds"})
    if value.get("anchor") != "created_at":
        raise ApiError(f"{param}.anchor must be created_at.", param=f"{param}.anchor", code="invalid_value")
    return whole_number(value.get("seconds"), f"{param}.seconds", MIN_EXPIRY_S, MAX_EXPIRY_S)


def whole_number(value: Any, param: str, least: int, most: int) -> int:
    is_text = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20
    number = int(value) if is_text else value
    if type(number) is not int or not least <= number <= most:
        raise ApiError(f"{param} must be a whole number from {least} to {most}.", param=param, code="invalid_value")
    return number


def limit_of(query: QueryParams, *, most: int, default: int) -> int:
    return whole_number(query["limit"], "limit", 1, most) if "limit" in query else default
