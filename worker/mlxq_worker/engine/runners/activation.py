"""The SwiGLU of models on slots, on a CPU: mlx's `exp` takes two to three times as long there as its `power`, and in
a small model that alone is a sixth of a step.

Outside `quick_swiglu`, on other devices and in other types than float32 models compute what mlx-lm computes. On a CPU
the results differ from that by rounding.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import mlx.core as mx

from mlxq_worker.engine.kvcache import device

_PER_LOG_2 = 1 / math.log(2)

_is_quick: ContextVar[bool] = ContextVar("is_quick", default=False)


@contextmanager
def quick_swiglu() -> Iterator[None]:
    """Models that `route_swiglu` was given use the quick one for the block."""
    token = _is_quick.set(not device.is_gpu())
    try:
        yield
    finally:
        _is_quick.reset(token)


def route_swiglu(model: Any) -> list[Callable[[], None]]:
    """Make the SwiGLU of the module that defines `model` go through here, if it has one.

    mlx-lm's models call one function of their module for it. Returns what takes back what is new.
    """
    module: Any = sys.modules[type(model).__module__]
    original = getattr(module, "swiglu", None)
    if original is None or hasattr(original, "is_routed"):
        return []

    def route(gate: mx.array, x: mx.array) -> mx.array:
        if _is_quick.get() and gate.dtype == mx.float32:
            return swiglu(gate, x)
        routed: mx.array = original(gate, x)
        return routed

    route.is_routed = True  # type: ignore[attr-defined]
    module.swiglu = route
    return [partial(setattr, module, "swiglu", original)]


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """`gate * sigmoid(gate) * x` of two arrays of one shape (Shazeer, "GLU Variants Improve Transformer", 2020)."""
    return gate / (1 + mx.power(2, gate * -_PER_LOG_2)) * x
