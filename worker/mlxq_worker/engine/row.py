"""One sequence of the batch: what is asked (`RowSpec`), its life (`Row`), and what came of it (`RowResult`).

A `Row` owns everything about one sequence, so nothing has to be kept in step with anything else. Plain Python:
no arrays, no queue. All times are seconds on the caller's monotonic clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlxq.contract import StopDetails


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSpec:
    """A request made ready for the engine: tokenised, checked against the model, every default filled in.

    `prompt_ids` has at least one id, all inside the vocabulary; `len(prompt_ids) < context_length`.
    `end_tokens` maps every id that ends this row to its token text: the EOS set (unless `ignore_eos`) and the
    request's `stop_token_ids`. `eos_ids` says which of them belong to the EOS set (the rest are `stop_token`).
    `deadline_s` is an allowance of decode seconds, counted from the row's first step.
    """

    row_id: str
    prompt_ids: tuple[int, ...]
    max_tokens: int
    context_length: int
    end_tokens: Mapping[int, str]
    eos_ids: frozenset[int]
    seed: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """How a row ended. `token_ids` holds every generated token, the end token included.

    `text` is what the request gets: without the end token, and cut at the stop string.
    `stop_details` says why; its `token_index` counts from 0. `prefill_s` runs from admission into the batch to
    the first token, `decode_s` from there to the end.
    """

    row_id: str
    token_ids: tuple[int, ...]
    text: str
    stop_details: StopDetails
    num_prompt_tokens: int
    seed: int
    prefill_s: float
    decode_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one `Engine.step` did. `rows_computed` counts the rows of the forward passes' decode batch and
    `rows_useful` those whose token was kept; their quotient over a run is `row_efficiency`.
    `free_rows` is how many more rows could decode at once right now."""

    finished: tuple[RowResult, ...]
    num_running: int
    num_waiting: int
    free_rows: int
    rows_computed: int
    rows_useful: int
