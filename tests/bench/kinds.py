"""Models of several kinds of layers, engine alone against `batch_generate`: the shared-prefix workload and others.

`python -m tests.bench.kinds [--items N] [--width W] [--seed S] [ARCHITECTURE ...]` prints one line of JSON for each
model and workload. About 6M parameters, float32, random weights; greedy tokens are compared one by one. Each side has
a model of its own, since an engine may lay its weights out anew, and ours is built before, as a worker builds it once.
The two take turns, `--rounds` times; ratios are medians of the rounds' own. In the first round mlx-lm may still have
functions compiled for new shapes, so three are better than one. On a machine with other work to do the processor's
time says more than the clock's.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from mlxq_worker.blas import preload_openblas

preload_openblas()

import mlx.core as mx  # noqa: E402
from tests.bench.in_process import Generated, generate_with_batch_generator, play, row_spec  # noqa: E402
from tests.bench.workloads import WORKLOADS, Item  # noqa: E402
from tests.support.architectures import OWN, SIZES  # noqa: E402

from mlxq_worker.engine.engine import BatchEngine  # noqa: E402

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
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the workloads")
    parser.add_argument("--workloads", nargs="*", default=["shared_prefix", "mixed", "uniform"])
    parser.add_argument("architectures", nargs="*", default=list(_OWN))
    args = parser.parse_args()
    for architecture in args.architectures:
        for line in _compare(architecture, args.workloads, args.items, args.width, args.rounds, args.seed):
            print(json.dumps(line), flush=True)


@dataclass(frozen=True, slots=True)
class _Timing:
    seconds: float
    cpu_seconds: float


def _compare(
    architecture: str, workloads: list[str], num_items: int, width: int, num_rounds: int, seed: int
) -> Iterator[dict[str, Any]]:
    model, others = _build(architecture), _build(architecture)
    num_parameters = _count(model)
    engine = BatchEngine(model, lambda ids: "", max_num_seqs=width)

    def with_engine(items: Sequence[Item]) -> Generated:
        return play(engine, [row_spec(index, item) for index, item in enumerate(items)])

    def with_batch_generator(items: Sequence[Item]) -> Generated:
        return generate_with_batch_generator(others, items, width)

    for name in workloads:
        items = WORKLOADS[name](random.Random(seed)).first(num_items).items
        with_engine(items[:2])
        with_batch_generator(items[:2])
        rounds, num_same = [], len(items)
        for _ in range(num_rounds):
            own, own_timing = _timed(with_engine, items)
            other, other_timing = _timed(with_batch_generator, items)
            rounds.append((own_timing, other_timing))
            num_same = min(num_same, sum(a == b for a, b in zip(own.tokens, other.tokens, strict=True)))
        yield {
            "architecture": architecture,
            "parameters_m": round(num_parameters / 1e6, 1),
            "workload": name,
            "seed": seed,
            "items": len(items),
            "engine_s": round(median(own.seconds for own, _ in rounds), 2),
            "batch_generate_s": round(median(other.seconds for _, other in rounds), 2),
            "times": round(median(other.seconds / own.seconds for own, other in rounds), 2),
            "times_in_cpu_time": round(median(other.cpu_seconds / own.cpu_seconds for own, other in rounds), 2),
            "same_answers": num_same,
        }


def _timed(generate: Callable[[Sequence[Item]], Generated], items: Sequence[Item]) -> tuple[Generated, _Timing]:
    start, cpu_start = time.perf_counter(), time.process_time()
    generated = generate(items)
    return generated, _Timing(time.perf_counter() - start, time.process_time() - cpu_start)


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
