"""Has a CPU compute the start of a step while Python still describes the rest of it: MLX computes in a thread of its
own, which otherwise waits until the whole step is described, and then Python waits for it."""

from __future__ import annotations

import mlx.core as mx


def start(x: mx.array) -> None:
    """Have `x` computed from here on, and what it depends on. Returns when at most some ten operations of that are
    left (MLX lets no more wait)."""
    try:
        mx.async_eval(x)
    except ValueError:  # MLX is compiling a function: there are no numbers yet
        return
