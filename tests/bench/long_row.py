"""One row of 4,096 tokens among 31 short ones: the step's time, and the memory of their keys and values.

    python -m tests.bench.long_row --model 6m

Beside it 32 short rows. Greedy, no rows coming or going. The two batches take turns, step by step; medians over
all steps. `kv_bytes` is what a batch takes, `needed_bytes` what its rows' tokens take without any room around
them. The last line is JSON.
"""

from __future__ import annotations

import ctypes
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click

if sys.platform == "linux":
    ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)

import mlx.core as mx
from tests.bench.in_process import BenchModel, row_spec
from tests.bench.models import SIZES, write_model
from tests.bench.workloads import FIRST_ID, LAST_ID, Item

from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.engine.kvcache.memory import measure_cost

WIDTH = 32
SHORT_TOKENS = 128
LONG_TOKENS = 4096
NUM_WARM_UP = 4


@dataclass(frozen=True, slots=True)
class Batch:
    """An engine whose rows all decode, and the bytes that it took to get there."""

    engine: BatchEngine
    lengths: tuple[int, ...]
    kv_bytes: int


@click.command(help=__doc__)
@click.option("--model", "size", type=click.Choice(list(SIZES)), default="6m", show_default=True)
@click.option("--steps", "num_steps", type=click.IntRange(1), default=60, show_default=True)
def main(size: str, num_steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = BenchModel.load(write_model(size, Path(folder))).model
    bytes_per_token = measure_cost(model).bytes_per_token
    limit = num_steps + NUM_WARM_UP + 1
    with_long = decoding_batch(model, (LONG_TOKENS, *[SHORT_TOKENS] * (WIDTH - 1)), limit)
    short = decoding_batch(model, (SHORT_TOKENS,) * WIDTH, limit)
    long_s, short_s = step_seconds(with_long.engine, short.engine, num_steps)
    report = {
        "model": size,
        "width": WIDTH,
        "long_step_s": round(long_s, 5),
        "short_step_s": round(short_s, 5),
        "ratio": round(long_s / short_s, 3),
        "kv_bytes": with_long.kv_bytes,
        "needed_bytes": sum(with_long.lengths) * bytes_per_token,
        "short_kv_bytes": short.kv_bytes,
    }
    print(json.dumps(report))


def decoding_batch(model: object, lengths: tuple[int, ...], max_tokens: int) -> Batch:
    """Rows with prompts of these lengths, prefilled and warmed up."""
    mx.clear_cache()
    before = mx.get_active_memory()
    engine = BatchEngine(model, lambda ids: "", max_num_seqs=len(lengths))
    for index, length in enumerate(lengths):
        rng = random.Random(index)
        prompt = tuple(rng.randrange(FIRST_ID, LAST_ID) for _ in range(length))
        # The first rows wait for the last one's prompt to be prefilled, and decode meanwhile.
        engine.admit(row_spec(index, Item(prompt, max_tokens + 64)))
    while engine.step(0.0).rows_computed < len(lengths):
        pass
    for _ in range(NUM_WARM_UP):
        engine.step(0.0)
    return Batch(engine, lengths, mx.get_active_memory() - before)


def step_seconds(first: BatchEngine, second: BatchEngine, num_steps: int) -> tuple[float, float]:
    """The median step of each, in turns."""
    seconds: dict[BatchEngine, list[float]] = {first: [], second: []}
    for _ in range(num_steps):
        for engine, taken in seconds.items():
            start = time.perf_counter()
            engine.step(0.0)
            taken.append(time.perf_counter() - start)
    return statistics.median(seconds[first]), statistics.median(seconds[second])


if __name__ == "__main__":
    main()
