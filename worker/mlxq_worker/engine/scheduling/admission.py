"""Refuses rows that could never run, with what they would need. Whether one fits now, `scheduler` asks."""

from __future__ import annotations

from mlxq.errors import RequestError
from mlxq_worker.engine.api import RowSpec
from mlxq_worker.engine.kvcache.budget import KvBudget


def check_fits(spec: RowSpec, budget: KvBudget) -> None:
    """Check that there is memory for the row in an empty batch.

    Raises:
        RequestError: there is not, even so.
    """
    lengths = [spec.num_tokens] * spec.num_rows
    if budget.fits(lengths):
        return
    times = f", {spec.num_rows} times for as many beams," if spec.beam else ""
    raise RequestError(
        f"{len(spec.prompt_ids)} prompt tokens and up to {spec.limit} generated ones{times} need "
        f"{budget.taken(lengths) / 2**20:.0f} MiB of KV cache, and there are {budget.limit_bytes / 2**20:.0f}; ask for "
        "fewer tokens",
        param="max_tokens",
        code="kv_cache_exceeded",
    )


def check_width(spec: RowSpec, width: int, max_num_seqs: int) -> None:
    """Check that an empty batch of `width` rows is wide enough for the row; that may be less than what was set.

    Raises:
        RequestError: its beam search is wider.
    """
    if spec.num_rows <= width:
        return
    because = "" if width == max_num_seqs else " because its model's caches can't be batched"
    raise RequestError(
        f"a beam search of width {spec.num_rows} takes {spec.num_rows} rows of the batch, and this worker decodes "
        f"{width} at most (max_num_seqs){because}",
        param="beam_width",
        code="beam_too_wide",
    )
