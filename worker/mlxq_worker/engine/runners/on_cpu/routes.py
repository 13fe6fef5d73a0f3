"""Everything that a model on slots has computed otherwise on a CPU."""

from __future__ import annotations

from typing import Any

from mlxq_worker.engine.kvcache import device
from mlxq_worker.engine.runners.on_cpu.activation import route_activations
from mlxq_worker.engine.runners.on_cpu.convolution import route_convolutions
from mlxq_worker.engine.runners.on_cpu.delta_rule import route_delta_rule
from mlxq_worker.engine.runners.on_cpu.experts import route_experts
from mlxq_worker.engine.runners.on_cpu.normalization import route_normalization
from mlxq_worker.engine.runners.on_cpu.quick import Unroute
from mlxq_worker.engine.runners.on_cpu.rotation import route_rotation


def route_quick(model: Any) -> list[Unroute]:
    """Have a model compute otherwise inside `quick`; on a GPU nothing is routed. Returns what takes that back."""
    if device.is_gpu():
        return []
    return [
        *route_activations(model),
        *route_convolutions(model),
        *route_delta_rule(model),
        *route_experts(model),
        *route_normalization(),
        *route_rotation(),
    ]
