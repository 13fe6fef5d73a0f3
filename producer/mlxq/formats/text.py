"""Values of tables as text: how a cell is written where a format has text only, and how what isn't JSON becomes JSON.

Knows no format.
"""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
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
    if isinstance(value, (list, tuple, dict, bytes)):
        return msgspec.json.encode(as_json(value)).decode()
    if isinstance(value, (datetime, date, time, timedelta)):
        return str(as_json(value))
    return str(value)


def as_json(value: Any) -> Any:
    """A value of a table in JSON's types. Dates become ISO 8601, decimals and ids text, bytes UTF-8 text.

    Raises:
        ValueError: bytes that are no UTF-8.
    """
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, dict):
        return {str(name): as_json(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(inner) for inner in value]
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray)):
        return value.decode()
    if isinstance(value, (Decimal, UUID)):
        return str(value)
    return str(value)
