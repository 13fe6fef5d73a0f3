"""Experts on a CPU: mlx's `gather_mm` multiplies one token by one matrix at a time there, and takes five times as long
for tokens that aren't laid out as rows. Here they are; and where experts get many tokens each, all of an expert's are
multiplied at once.

Who gets which tokens has to be known for that, so the step is computed up to there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.switch_layers import SwitchLinear

from mlxq_worker.engine.runners.on_cpu.quick import Unroute, once, route

MANY = 32
"""With so many tokens an expert, on average, one product for each expert takes less than one for each token."""


def route_experts(model: Any) -> list[Unroute]:
    """Make the experts' projections of a model go through here, if it has any."""
    if not any(isinstance(module, SwitchLinear) for module in model.modules()):
        return []
    return route(SwitchLinear, "__call__", _project)


def _project(layer: SwitchLinear, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array | None:
    """What a `SwitchLinear` does: (..., 1, K), which broadcasts over `indices`, to (*indices.shape, 1, N); `None` for
    other types."""
    weight = layer["weight"]
    if not x.dtype == weight.dtype == mx.float32:
        return None
    rows = mx.broadcast_to(x, (*indices.shape, *x.shape[-2:])).reshape(-1, 1, x.shape[-1])
    if sorted_indices and indices.size >= MANY * weight.shape[0]:
        result = _multiplied(rows[:, 0], weight, once(_runs, indices))  # a layer has three of these
    else:
        result = mx.gather_mm(rows, weight.swapaxes(-1, -2), rhs_indices=indices.flatten())
    result = result.reshape(*indices.shape, 1, -1)
    return result + layer["bias"][indices][..., None, :] if "bias" in layer else result


def _runs(indices: mx.array) -> list[tuple[int, int, int]]:
    """Which of n tokens, that lie in the order of their experts, each of those gets: it, the first, the one behind the
    last. The indices (n,) are computed here."""
    numbers, firsts = np.unique(np.array(indices), return_index=True)
    stops = np.append(firsts[1:], indices.size)
    return list(zip(numbers.tolist(), firsts.tolist(), stops.tolist(), strict=True))


def _multiplied(rows: mx.array, weight: mx.array, runs: Sequence[tuple[int, int, int]]) -> mx.array:
    """Tokens (n, K) by their experts' matrices, of all (E, N, K): (n, N)."""
    matrices = mx.split(weight.swapaxes(-1, -2), weight.shape[0])  # views, (1, K, N) each
    # Not by an index, which would copy the matrix.
    products = [rows[first:stop] @ matrices[expert].squeeze(0) for expert, first, stop in runs]
    return mx.concatenate(products) if len(products) > 1 else products[0]
