"""The job of the stock RQ worker in the benchmark: one request, one `mlx_lm` generation."""

from __future__ import annotations

import functools
from typing import Any

MODEL_VARIABLE = "BENCH_MODEL"


@functools.cache
def _loaded() -> tuple[Any, Any]:
    import os

    import mlx_lm

    model, tokenizer = mlx_lm.load(os.environ[MODEL_VARIABLE])[:2]
    tokenizer.eos_token_ids = None
    return model, tokenizer


def generate(prompt: list[int], num_tokens: int) -> list[int]:
    """The token ids of a greedy answer: `mlx_lm.generate`, which joins these steps, but for ids instead of text."""
    import mlx_lm

    model, tokenizer = _loaded()
    return [step.token for step in mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=num_tokens)]
