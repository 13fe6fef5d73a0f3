"""Models of several kinds of layers, engine alone against `batch_generate`: the shared-prefix workload and others.

`python -m tests.bench.kinds [--items N] [--width W] [ARCHITECTURE ...]` prints one line of JSON for each model and
workload. About 6M parameters, float32, random weights; greedy tokens are compared one by one.
On a machine with other work to do the processor's time says more than the clock's.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import time
from collections.abc import Iterator, Mapping
from typing import Any

from mlxq_worker.blas import preload_openblas

preload_openblas()

import mlx.core as mx  # noqa: E402
from tests.bench.in_process import generate_with_batch_generator, generate_with_engine  # noqa: E402
from tests.bench.workloads import WORKLOADS  # noqa: E402
from tests.support.architectures import OWN, SIZES  # noqa: E402

_SIZES: Mapping[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 8192,
}
_EXPERTS = {"moe_intermediate_size": 176, "shared_expert_intermediate_size": 176}
_OWN: Mapping[str, Mapping[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "gemma3_text": {"sliding_window": 128, "sliding_window_pattern": 3},
    "gpt_oss": {
        "sliding_window": 128,
        "intermediate_size": 176,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
    },
    "qwen3_next": {
        **_EXPERTS,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 4,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "linear_conv_kernel_dim": 4,
        "full_attention_interval": 3,
    },
    "lfm2": {"block_dim": 256, "block_ff_dim": 704, "block_multiple_of": 64, "full_attn_idxs": [1, 3, 5]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--workloads", nargs="*", default=["shared_prefix", "mixed", "uniform"])
    parser.add_argument("architectures", nargs="*", default=list(_OWN))
    args = parser.parse_args()
    for architecture in args.architectures:
        for line in _compare(architecture, args.workloads, args.items, args.width):
            print(json.dumps(line), flush=True)


def _compare(architecture: str, workloads: list[str], num_items: int, width: int) -> Iterator[dict[str, Any]]:
    model = _build(architecture)
    num_parameters = _count(model)
    for name in workloads:
        items = WORKLOADS[name](random.Random(0)).first(num_items).items
        seconds, cpu_seconds, tokens = [], [], []
        for generate in (generate_with_engine, generate_with_batch_generator):
            generate(model, items[:2], width)
            start, cpu_start = time.perf_counter(), time.process_time()
            tokens.append(generate(model, items, width).tokens)
            seconds.append(time.perf_counter() - start)
            cpu_seconds.append(time.process_time() - cpu_start)
        same = sum(own == other for own, other in zip(*tokens, strict=True))
        yield {
            "architecture": architecture,
            "parameters_m": round(num_parameters / 1e6, 1),
            "workload": name,
            "items": len(items),
            "engine_s": round(seconds[0], 2),
            "batch_generate_s": round(seconds[1], 2),
            "times": round(seconds[1] / seconds[0], 2),
            "times_in_cpu_time": round(cpu_seconds[1] / cpu_seconds[0], 2),
            "same_answers": same,
        }


def _count(model: Any) -> int:
    from mlx.utils import tree_flatten

    return sum(array.size for _, array in tree_flatten(model.parameters()))


def _build(architecture: str) -> Any:
    mx.random.seed(0)
    module = importlib.import_module(f"mlx_lm.models.{architecture}")
    config = {"model_type": architecture, **SIZES, **OWN[architecture], **_SIZES, **_OWN[architecture]}
    model = module.Model(module.ModelArgs.from_dict(config))
    mx.eval(model.parameters())
    return model


if __name__ == "__main__":
    main()
