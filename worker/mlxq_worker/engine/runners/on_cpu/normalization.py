"""Norms on a CPU. mlx computes the RMSNorm of a few tokens by seven operations there, each of which starts up for
longer than it takes. Here they are four, as MLX compiles what goes number by number: once, where there is a compiler,
and keeps that in the folder for temporary files.

And since models have a norm before each attention and each MLP, of all hidden states, that is where the step is started
as far as it is described.
"""

from __future__ import annotations

from functools import lru_cache, partial

import mlx.core as mx

from mlxq_worker.engine.runners.on_cpu.quick import Unroute, route
from mlxq_worker.engine.runners.on_cpu.starting import start_hidden_states

_FEW_NUMBERS = 1 << 15
"""With more of them starting up is the least of it."""


def route_normalization() -> list[Unroute]:
    """Make MLX's norms go through here."""
    return [*route(mx.fast, "rms_norm", _rms_norm), *route(mx.fast, "layer_norm", _layer_norm)]


def _layer_norm(x: mx.array, *_: object) -> None:
    """What `mx.fast.layer_norm` does is left to it."""
    start_hidden_states(x)


def _rms_norm(x: mx.array, weight: mx.array | None, eps: float) -> mx.array | None:
    """What `mx.fast.rms_norm` does: x (..., D) over the root of the mean of its squares and `eps`, by weights (D,)
    (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019). `None` for many numbers and other types than
    float32."""
    start_hidden_states(x)
    if weight is None or x.size > _FEW_NUMBERS or not x.dtype == weight.dtype == mx.float32:
        return None
    rows = x.reshape(-1, x.shape[-1])  # MLX compiles a function anew for other numbers of axes, which takes a second
    squares = mx.square(rows).sum(axis=-1, keepdims=True)
    return _scaled(rows, _inverse_root(squares, *_constants(x.shape[-1], eps)), weight).reshape(x.shape)


@lru_cache(maxsize=64)
def _constants(size: int, eps: float) -> tuple[mx.array, mx.array]:
    """1 / D and `eps`: as arrays, since MLX compiles a function anew for other numbers, too."""
    constants = mx.array(1 / size), mx.array(eps)
    mx.eval(constants)
    return constants


@partial(mx.compile, shapeless=True)
def _inverse_root(squares: mx.array, per_number: mx.array, eps: mx.array) -> mx.array:
    return mx.rsqrt(squares * per_number + eps)


@partial(mx.compile, shapeless=True)
def _scaled(x: mx.array, scale: mx.array, weight: mx.array) -> mx.array:
    return x * scale * weight
