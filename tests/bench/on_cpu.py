"""What a CPU takes for operations of a layer as mlx-lm computes them, and as models on slots do there.

`python -m tests.bench.on_cpu` prints one line of JSON: microseconds of the processor's time of each, the least of
several rounds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from mlxq_worker.blas import preload_openblas

preload_openblas()

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402
from mlx_lm.models import gated_delta, qwen3_next  # noqa: E402
from mlx_lm.models.switch_layers import SwitchGLU  # noqa: E402
from tests.support.architectures import build  # noqa: E402

from mlxq_worker.engine.runners.attention import attend  # noqa: E402
from mlxq_worker.engine.runners.on_cpu.quick import quick  # noqa: E402
from mlxq_worker.engine.runners.on_cpu.routes import route_quick  # noqa: E402
from mlxq_worker.engine.runners.on_cpu.weights import lay_out_weights  # noqa: E402

_ROUNDS, _CALLS = 7, 4


def main() -> None:
    parts = operations(_with_mlxs, lambda layer: None)
    theirs = {name: least_us(compute) for name, compute in parts.items()}
    for model in (build("qwen3_next"), nn.Sequential(nn.Conv1d(1, 1, 1))):
        route_quick(model)
    ours = {name: least_us(compute, quick) for name, compute in operations(attend, lay_out_weights).items()}
    print(json.dumps({name: {"mlx_lm_us": theirs[name], "mlxq_us": ours[name]} for name in parts}))


def _with_mlxs(queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale)


def operations(
    attention: Callable[[mx.array, mx.array, mx.array, float], mx.array], lay_out: Callable[[nn.Module], None]
) -> dict[str, Callable[[], Any]]:
    """By what they are; of decode steps of 16 tokens and prompts' steps of 512."""
    assert qwen3_next.gated_delta_update is gated_delta.gated_delta_update
    linear, norm, experts = nn.Linear(1024, 3072, bias=False), nn.RMSNorm(256), SwitchGLU(256, 176, 4)
    lay_out(nn.Sequential(linear, experts))
    convolution = nn.Conv1d(256, 256, 3, groups=256, bias=False)
    found: dict[str, Callable[[], Any]] = {}
    for num_tokens in (16, 512):
        heads, positions = mx.random.normal((num_tokens, 4, 1, 64)), mx.arange(num_tokens)
        wide, x = mx.random.normal((num_tokens, 1, 704)), mx.random.normal((num_tokens, 1, 256))
        chosen = mx.random.randint(0, 4, (num_tokens, 1, 2)).astype(mx.uint32)
        rows = mx.random.normal((16, 3, 256) if num_tokens == 16 else (1, 514, 256))
        inputs = mx.random.normal((num_tokens, 1, 1024))
        mx.eval(heads, positions, wide, x, chosen, rows, inputs)
        mx.eval([module.parameters() for module in (experts, convolution, linear, norm)])
        found |= {
            f"RoPE, {num_tokens}": lambda h=heads, p=positions: mx.fast.rope(
                h, 64, traditional=False, base=1e4, scale=1.0, offset=p
            ),
            f"product, {num_tokens}": lambda i=inputs: linear(i),
            f"norm, {num_tokens}": lambda x=x: norm(x),
            f"SiLU, {num_tokens}": lambda w=wide: nn.silu(w),
            f"GELU, {num_tokens}": lambda w=wide: nn.gelu_approx(w),
            f"convolution, {num_tokens}": lambda r=rows: convolution(r),
            f"experts, {num_tokens}": lambda x=x, c=chosen: experts(x, c),
        }
    keys, decay = (mx.random.normal((1, 300, 4, 32)) / 6 for _ in range(3)), mx.random.uniform(0, 1, (1, 300, 4))
    delta = [*keys, decay, decay, mx.zeros((1, 4, 32, 32))]
    mx.eval(delta)
    query, seen = mx.random.normal((16, 4, 1, 64)), mx.random.normal((16, 4, 500, 64))
    mx.eval(query, seen)
    return {
        **found,
        "delta rule, 300": lambda: gated_delta.gated_delta_ops(*delta),
        "attention to 500, 16": lambda: attention(query, seen, seen, 0.1),
    }


def least_us(compute: Callable[[], Any], block: Callable[[], Any] = nullcontext) -> float:
    least = float("inf")
    for _ in range(_ROUNDS):
        start = time.process_time()
        with block():
            mx.eval([compute() for _ in range(_CALLS)])
        least = min(least, time.process_time() - start)
    return round(1e6 * least / _CALLS, 1)


if __name__ == "__main__":
    main()
