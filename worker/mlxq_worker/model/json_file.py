"""Reads a JSON object from a model's file, with an error that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlxq.errors import ModelError


def read_object(file: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Mapping[str, Any]:
    """Read the object in `file`; `object_hook` is that of `json.loads`.

    Raises:
        ModelError: the file can't be read, or holds something else.
    """
    try:
        value = json.loads(file.read_bytes(), object_hook=object_hook)
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} can't be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file} must hold a JSON object")
    return value
