"""Activations on a CPU: mlx's `exp`, `sigmoid` and `tanh` take three to five times as long there as its `power`, and
that ten times as long as numpy's; in a small model that alone is a good part of a step.

Functions that mlx-lm compiles keep what they were traced with: mlx-lm's own, since a model is looked into, and so run,
before anything of it is computed otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxq_worker.engine.runners.on_cpu.powers import PER_LOG_2, power_of_two
from mlxq_worker.engine.runners.on_cpu.quick import Unroute, route, sources_of


def route_activations(model: Any) -> list[Unroute]:
    """Make the activations of a model's modules go through here: functions of the Python modules that define them, and
    of `mlx.nn`."""
    owners = [(source, _OF_MODELS) for source in sources_of(model)] + [(nn, _OF_NN)]
    return [
        unroute
        for owner, functions in owners
        for name, function in functions.items()
        for unroute in route(owner, name, _in_float32(function))
    ]


def _in_float32(function: Callable[..., mx.array]) -> Callable[..., mx.array | None]:
    def otherwise(*arrays: mx.array, **options: float) -> mx.array | None:
        return function(*arrays, **options) if all(array.dtype == mx.float32 for array in arrays) else None

    return otherwise


def _per_sigmoid(x: mx.array, times: float = 1.0) -> mx.array:
    """`1 / sigmoid(times * x)`."""
    return 1 + power_of_two(x * (-PER_LOG_2 * times))


def silu(x: mx.array) -> mx.array:
    """`x * sigmoid(x)`."""
    return x / _per_sigmoid(x)


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """`gate * sigmoid(gate) * x` of two arrays of one shape (Shazeer, "GLU Variants Improve Transformer", 2020)."""
    return gate / _per_sigmoid(gate) * x


def precise_swiglu(like: mx.array, gate: mx.array, x: mx.array) -> mx.array:
    """The same, in the type of `like`."""
    return swiglu(gate, x)


def swiglu_oai(gate: mx.array, x: mx.array, alpha: float = 1.702, limit: float = 7.0) -> mx.array:
    """gpt-oss's: both are clipped, the gate from above only, and x has one more."""
    gate = mx.minimum(gate, limit)
    return (mx.clip(x, -limit, limit) + 1) * (gate / _per_sigmoid(gate, alpha))


def gelu_approx(x: mx.array) -> mx.array:
    """`x / 2 * (1 + tanh(z))`, which is x times the sigmoid of 2 z."""
    return x / _per_sigmoid(x * (1 + 0.044715 * x * x), 2 * math.sqrt(2 / math.pi))


_OF_MODELS: Mapping[str, Callable[..., mx.array]] = {
    "swiglu": swiglu,
    "precise_swiglu": precise_swiglu,
    "swiglu_oai": swiglu_oai,
}
_OF_NN: Mapping[str, Callable[..., mx.array]] = {"silu": silu, "gelu_approx": gelu_approx}
