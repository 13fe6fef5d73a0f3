"""A `RowResult` for tests: cancelled before its first token; a test changes what it is about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mlxq.contract import StopDetails
from mlxq_worker.engine.api import RowId, RowResult

_PLAIN = RowResult(
    row_id=RowId("row"),
    token_ids=(),
    text="",
    stop_details=StopDetails(type="cancelled"),
    num_prompt_tokens=1,
    seed=0,
    prefill_s=0.0,
    decode_s=0.0,
)


def row_result(**changes: Any) -> RowResult:
    """The plain result with some fields changed."""
    return replace(_PLAIN, **changes)
