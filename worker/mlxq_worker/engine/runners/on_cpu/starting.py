"""Has a CPU compute the start of a step while Python still describes the rest of it: MLX computes in a thread of its
own, which otherwise waits until the whole step is described, and then Python waits for it."""

from __future__ import annotations

import mlx.core as mx


def start_hidden_states(x: mx.array) -> None:
    """Have `x` computed from here on, and what it depends on, if it is hidden states (B, T, E); heads of queries and
    keys come too soon after those to be worth a start. Returns when at most some ten operations of that are left (MLX
    lets no more wait)."""
    if x.ndim != 3:
        return
    try:
        mx.async_eval(x)
    except ValueError:  # MLX is compiling a function: there are no numbers yet
        return
