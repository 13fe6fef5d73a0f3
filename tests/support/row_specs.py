"""A `RowSpec` for tests: greedy, nothing ends it but its limit of 100 tokens; a test changes what it is about.

Tests write the id of a row as its name: ``a`` is request a's first answer, ``a#1`` its second.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mlxq_worker.engine.api import RowId, RowSpec


def row_named(name: str) -> RowId:
    """The id of the row with this name."""
    request_id, _, index = name.partition("#")
    return RowId(request_id, int(index or 0))


def name_of(row_id: RowId) -> str:
    """The name of the row with this id."""
    return f"{row_id.request_id}#{row_id.index}" if row_id.index else row_id.request_id


_PLAIN = RowSpec(
    row_id=row_named("row"),
    prompt_ids=(1,),
    max_tokens=100,
    context_length=10_000,
    end_tokens={},
    eos_ids=frozenset(),
    seed=0,
)


def row_spec(*, row_id: str = "row", **changes: Any) -> RowSpec:
    """The plain spec with some fields changed; `row_id` is the row's name."""
    return replace(_PLAIN, row_id=row_named(row_id), **changes)
