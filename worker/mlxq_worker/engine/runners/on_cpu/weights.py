"""Weights on a CPU: in every product OpenBLAS lays the whole matrix out anew, in blocks, which for a few tokens takes
longer than multiplying them. From a matrix whose numbers for one input lie side by side it does that in half the time;
checkpoints have those for one output side by side.

Only where they lie in memory changes: a module's weights keep their shape and their numbers, and their products are the
same to the bit.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.switch_layers import SwitchLinear

from mlxq_worker.blas import core_name
from mlxq_worker.engine.kvcache import device

_LAY_OUT_ANEW = frozenset({"Haswell", "Zen"})
"""OpenBLAS's cores on which it was measured. With AVX-512 small products are of matrices as they lie."""


def lay_out_weights(model: Any) -> None:
    """Lay out the float32 matrices of a model's linear layers and experts anew, one after another, where that pays."""
    if not device.is_gpu() and core_name() in _LAY_OUT_ANEW:
        for module in model.modules():
            if isinstance(module, (nn.Linear, SwitchLinear)) and module.weight.dtype == mx.float32:
                module.weight = inputs_apart(module.weight)
                mx.eval(module.weight)  # and let go of what it was, before the next one


def inputs_apart(weight: mx.array) -> mx.array:
    """The same weights (..., outputs, inputs) with those of one input side by side: at no cost if they are."""
    return mx.contiguous(weight.swapaxes(-1, -2)).swapaxes(-1, -2)
