"""Values of tables as text: how a cell is written where a format has text only, and how what isn't JSON becomes JSON.

Knows no format.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec


def cell_text(value: Any) -> str:
    """A value as the text of a cell; `None` is empty, and lists and objects are JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple, dict)):
        return msgspec.json.encode(as_json(value, of_bytes=text_of)).decode()
    return str(as_json(value, of_bytes=text_of))


def text_of(value: bytes) -> str:
    """Bytes as text: UTF-8 where that is what they are, else base64."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return b64encode(value).decode()


def as_json(value: Any, *, of_bytes: Callable[[bytes], str] = bytes.decode) -> Any:
    """A value of a table in JSON's types. Dates become ISO 8601, decimals and ids text, and so do bytes.

    Args:
        of_bytes: makes text of bytes.

    Raises:
        ValueError: `of_bytes` has; by default, of those that are no UTF-8.
    """
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, dict):
        return {str(name): as_json(inner, of_bytes=of_bytes) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(inner, of_bytes=of_bytes) for inner in value]
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray)):
        return of_bytes(bytes(value))
    if isinstance(value, (Decimal, UUID)):
        return str(value)
    return str(value)
