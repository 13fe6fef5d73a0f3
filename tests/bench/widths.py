"""The decode step at widths from 1 to 64, with the model's bare forward pass at the same width as the limit.

    python -m tests.bench.widths --model 6m --json widths.json

The engine's step samples, looks at tokens and keeps rows; the bare pass computes logits on mlx-lm's own batch cache and
nothing else. Greedy, equal lengths, no rows coming or going. The two take turns; medians over the rounds. The last
line is JSON.
"""

from __future__ import annotations

import ctypes
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

if sys.platform == "linux":
    ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from tests.bench import report
from tests.bench.in_process import BenchModel, row_spec
from tests.bench.models import SIZES, write_model
from tests.bench.workloads import FIRST_ID, LAST_ID, Item

from mlxq_worker.engine.engine import BatchEngine

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
NUM_STEPS = 48
PROMPT_TOKENS = 64


@click.command(help=__doc__)
@click.option("--model", "size", type=click.Choice(list(SIZES)), default="6m", show_default=True)
@click.option("--width", "widths", multiple=True, type=click.IntRange(1), default=WIDTHS, help="[default: 1 to 64]")
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True)
@report.json_option
def main(size: str, widths: tuple[int, ...], runs: int, json_path: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench = BenchModel.load(write_model(size, Path(folder)))
    figures = [measure(bench.model, width, runs) for width in widths]
    report.publish({"model": size, "runs": runs, "widths": figures}, json_path)


def measure(model: Any, width: int, runs: int) -> dict[str, float]:
    """Seconds of a step both ways, and the engine's tokens per second as a share of the bare pass's."""
    prompts = _prompts(width)
    pairs = [(engine_step_s(model, prompts), bare_step_s(model, prompts)) for _ in range(runs + 1)][1:]
    ours, bare = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    figures = {
        "width": width,
        "engine_tokens_per_s": round(width / ours, 1),
        "bare_tokens_per_s": round(width / bare, 1),
        "share": round(statistics.median(bare_s / engine_s for engine_s, bare_s in pairs), 3),
    }
    print(figures, file=sys.stderr)
    return figures


def engine_step_s(model: Any, prompts: list[tuple[int, ...]]) -> float:
    """Mean seconds of a decode step of the engine, all rows running."""
    engine = BatchEngine(model, lambda ids: "", max_num_seqs=len(prompts))
    for index, prompt in enumerate(prompts):
        engine.admit(row_spec(index, Item(prompt, 10 * NUM_STEPS)))
    report = engine.step(0.0)
    while report.num_waiting or report.rows_computed < len(prompts):
        report = engine.step(0.0)
    start = time.perf_counter()
    for _ in range(NUM_STEPS):
        engine.step(0.0)
    seconds = time.perf_counter() - start
    engine.close()
    return seconds / NUM_STEPS


def bare_step_s(model: Any, prompts: list[tuple[int, ...]]) -> float:
    """Mean seconds of a forward pass of one token a row, evaluated to its logits."""
    single = [make_prompt_cache(model) for _ in prompts]
    caches = [layer[0].merge(list(layer)) for layer in zip(*single, strict=True)]
    tokens = mx.array(prompts)  # (B, L)
    mx.eval(model(tokens, cache=caches), [cache.state for cache in caches])
    newest = tokens[:, -1:]
    start = time.perf_counter()
    for _ in range(NUM_STEPS):
        mx.eval(model(newest, cache=caches))
    return (time.perf_counter() - start) / NUM_STEPS


def _prompts(width: int) -> list[tuple[int, ...]]:
    rng = random.Random(width)
    return [tuple(rng.randrange(FIRST_ID, LAST_ID) for _ in range(PROMPT_TOKENS)) for _ in range(width)]


if __name__ == "__main__":
    main()
