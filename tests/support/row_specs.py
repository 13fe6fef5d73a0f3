"""A `RowSpec` for tests: greedy, nothing ends it but its limit of 100 tokens; a test changes what it is about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mlxq_worker.engine.rows.row import RowSpec

_PLAIN = RowSpec(
    row_id="row",
    prompt_ids=(1,),
    max_tokens=100,
    context_length=10_000,
    end_tokens={},
    eos_ids=frozenset(),
    seed=0,
)


def row_spec(**changes: Any) -> RowSpec:
    """The plain spec with some fields changed."""
    return replace(_PLAIN, **changes)
