"""What it costs to choose the tokens of a step: of rows that are alike, of rows that differ, of one odd row.

    python -m tests.bench.sampling --width 32

Random logits, no model. The kinds take turns; each figure is the median over the rounds, in milliseconds. The last
line is JSON.
"""

from __future__ import annotations

import ctypes
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

if sys.platform == "linux":
    ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)

import mlx.core as mx
import numpy as np
from rich.console import Console
from rich.table import Table

from mlxq_worker.engine.api import RowId, RowSpec
from mlxq_worker.engine.rows.row import Row
from mlxq_worker.engine.sampling.batch_sampler import BatchSampler

VOCABULARIES = (2048, 131_072)
PROMPT_TOKENS = 200
UNIFORM: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "min_p": 0.02}
PENALTIES: dict[str, Any] = {"repetition_penalty": 1.1, "frequency_penalty": 0.2, "presence_penalty": 0.1}


class AnyEven:
    """A constraint that lets every other id through."""

    def __init__(self, num_ids: int) -> None:
        self._bits = np.full((num_ids // 8,), 0b01010101, np.uint8).tobytes()

    def allowed_ids(self) -> bytes:
        return self._bits

    @property
    def is_complete(self) -> bool:
        return True

    def advance(self, token_id: int) -> None:
        """Nothing depends on it."""


def kinds(width: int, num_ids: int, rng: random.Random) -> dict[str, list[dict[str, Any]]]:
    """By name, the parameters of each row of a batch."""

    def own() -> dict[str, Any]:
        return {
            "temperature": rng.uniform(0.3, 1.5),
            "top_p": rng.uniform(0.7, 1.0),
            "top_k": rng.randrange(1, 100),
            "min_p": rng.uniform(0, 0.1),
        }

    greedy: list[dict[str, Any]] = [{}] * width
    odd = {**own(), **PENALTIES, "logit_bias": {7: 1.0}}
    return {
        "greedy": greedy,
        "temperature": [{"temperature": 0.8}] * width,
        "uniform": [UNIFORM] * width,
        "per row": [own() for _ in range(width)],
        "top_p alone": [{"temperature": 0.8, "top_p": 0.9}] * width,
        "penalties": [PENALTIES] * width,
        "constraints": [{"constraint": AnyEven(num_ids)}] * width,
        "20 logprobs": [{"num_logprobs": 20}] * width,
        "one odd row": [odd, *greedy[1:]],
        "one with logprobs": [{"num_logprobs": 20}, *greedy[1:]],
    }


def rows_of(parameters: Sequence[dict[str, Any]], num_ids: int, rng: random.Random) -> tuple[Row, ...]:
    """Rows amid their answers, each with a prompt and a seed of its own."""
    specs = [
        RowSpec(
            row_id=RowId(str(index)),
            prompt_ids=tuple(rng.choices(range(num_ids), k=PROMPT_TOKENS)),
            max_tokens=1_000_000,
            context_length=2_000_000,
            end_tokens={},
            eos_ids=frozenset(),
            seed=rng.randrange(1 << 63),
            **each,
        )
        for index, each in enumerate(parameters)
    ]
    return tuple(Row(spec, lambda token_ids: "") for spec in specs)


def step(sampler: BatchSampler, rows: tuple[Row, ...], logits: mx.array) -> float:
    """Choose a token for every row and commit it; the seconds it took."""
    start = time.perf_counter()
    for row in rows:
        row.num_scheduled += 1
    sampled = sampler.sample(rows, logits)
    sampled.start()
    tokens = sampled.read()
    for row, token_id in zip(rows, tokens.token_ids, strict=True):
        row.commit(token_id, 0.0, tokens.scores.get(row))
    return time.perf_counter() - start


def measure(width: int, num_ids: int, rounds: int, seed: int) -> dict[str, float]:
    """Milliseconds a step of each kind takes."""
    rng = random.Random(seed)
    logits = mx.random.normal((width, num_ids), scale=3.0, key=mx.random.key(seed))
    mx.eval(logits)
    batches = {name: rows_of(each, num_ids, rng) for name, each in kinds(width, num_ids, rng).items()}
    samplers = {name: BatchSampler() for name in batches}
    times: dict[str, list[float]] = {name: [] for name in batches}
    for round_number in range(-2, rounds):
        for name, rows in batches.items():
            seconds = step(samplers[name], rows, logits)
            if round_number >= 0:
                times[name].append(seconds * 1000)
    return {name: round(statistics.median(each), 3) for name, each in times.items()}


@click.command(help=__doc__)
@click.option("--width", type=click.IntRange(1), default=32)
@click.option("--rounds", type=click.IntRange(1), default=15)
@click.option("--seed", type=int, default=7)
def main(width: int, rounds: int, seed: int) -> None:
    report = {num_ids: measure(width, num_ids, rounds, seed) for num_ids in VOCABULARIES}
    table = Table("rows", *(f"{num_ids} ids" for num_ids in VOCABULARIES), title=f"ms a step, width {width}")
    for name in report[VOCABULARIES[0]]:
        table.add_row(name, *(f"{report[num_ids][name]:g}" for num_ids in VOCABULARIES))
    Console().print(table)
    print(json.dumps({"width": width, "rounds": rounds, "ms": report}))


if __name__ == "__main__":
    main()
