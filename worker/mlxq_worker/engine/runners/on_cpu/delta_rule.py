"""The gated delta rule on a CPU: mlx-lm goes there token by token, at a dozen small operations each. Here a chunk of
tokens at a time is a few matrix products (Yang et al., "Parallelizing Linear Transformers with the Delta Rule over
Sequence Length" and "Gated Delta Networks", 2024).

A token decays the state, subtracts what the state gives for its key from its value, and adds that difference: within a
chunk the differences are the solution of a triangular system, in which the state before is the only unknown.
"""

from __future__ import annotations

import sys
from typing import Any

import mlx.core as mx

from mlxq_worker.engine.runners.on_cpu.quick import Unroute, route, sources_of

CHUNK = 32
_LEAST_TOKENS = 8
"""Fewer are sooner done one by one."""


def route_delta_rule(model: Any) -> list[Unroute]:
    """Make the gated delta rule of a model go through here, if its Python modules call mlx-lm's."""
    updates = [update for source in sources_of(model) if (update := getattr(source, "gated_delta_update", None))]
    return route(sys.modules[updates[0].__module__], "gated_delta_ops", _in_float32) if updates else []


def _in_float32(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    g: mx.array,
    beta: mx.array,
    state: mx.array | None = None,
    mask: mx.array | None = None,
) -> tuple[mx.array, mx.array] | None:
    """As `gated_delta_ops`, but for the cases that it is left to."""
    if mask is not None or state is None or g.ndim != 3 or q.shape[1] < _LEAST_TOKENS:
        return None
    if any(each.dtype != mx.float32 for each in (q, k, v, g, beta, state)):
        return None
    return gated_delta(q, k, v, g, beta, state)


def gated_delta(
    q: mx.array, k: mx.array, v: mx.array, g: mx.array, beta: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    """T tokens of B rows, H heads of values and H' of keys, each of which serves H / H'.

    With the decay g, s = g s and s += beta (v - s k) k^T for every token, whose result is s q.

    Args:
        q: (B, T, H', K), as `k`.
        v: (B, T, H, V).
        g: (B, T, H), as `beta`.
        state: s before the first token, (B, H, V, K).

    Returns:
        The results (B, T, H, V), and s after the last token.
    """
    num_tokens, num_heads = v.shape[1:3]
    times = num_heads // q.shape[2]
    if times > 1:
        q, k = mx.repeat(q, times, -2), mx.repeat(k, times, -2)
    # (B, chunks, H, C, ...) each; what fills up the last chunk neither decays nor adds anything.
    q, k, v = _chunked(q), _chunked(k), _chunked(v)
    g, beta = _chunked(g, 1.0)[..., None], _chunked(beta)[..., None]
    earlier, seen = (
        mx.tri(CHUNK, k=-1, dtype=mx.bool_),
        mx.tri(CHUNK, dtype=mx.bool_),
    )  # (C, C): [t, i] for i < t, i <= t
    # Products and not differences of logarithms: those lose all digits where one token forgets and the next don't.
    decay = mx.cumprod(mx.where(earlier, g, 1.0), axis=-2)  # (..., C, C): of what token i adds, up to token t
    total = mx.cumprod(g, axis=-2)  # (..., C, 1): of the state before the chunk
    system = mx.where(earlier, beta * decay * (k @ k.swapaxes(-1, -2)), mx.eye(CHUNK))
    solved = mx.linalg.tri_inv(system, stream=mx.cpu)
    of_values, of_state = solved @ (beta * v), solved @ (beta * total * k)
    attended = mx.where(seen, decay * (q @ k.swapaxes(-1, -2)), 0.0)
    q, k = total * q, decay[..., -1, :, None] * k  # as they meet the state before the chunk and that behind it
    state = state.swapaxes(-1, -2)  # (B, H, K, V)
    results = []
    for chunk in range(q.shape[1]):
        added = of_values[:, chunk] - of_state[:, chunk] @ state  # (B, H, C, V)
        results.append(q[:, chunk] @ state + attended[:, chunk] @ added)
        state = total[:, chunk, :, -1:] * state + k[:, chunk].swapaxes(-1, -2) @ added
    result = mx.stack(results, axis=1).swapaxes(2, 3).flatten(1, 2)[:, :num_tokens]
    return result, state.swapaxes(-1, -2)


def _chunked(tokens: mx.array, filling: float = 0.0) -> mx.array:
    """(B, T, H, ...) to (B, chunks, H, C, ...)."""
    missing = -tokens.shape[1] % CHUNK
    if missing:
        widths = [(0, 0), (0, missing), *[(0, 0)] * (tokens.ndim - 2)]
        tokens = mx.pad(tokens, widths, constant_values=filling)
    return mx.unflatten(tokens, 1, (-1, CHUNK)).swapaxes(2, 3)
