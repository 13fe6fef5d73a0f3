"""What running a step ahead is worth where tokens end the answers: always, never, and where it pays.

    python -m tests.bench.run_ahead --model 6m

Answers end on a token that nobody foresees, after 5, 15 or 60 tokens on average. The engine runs by itself, three ways
in turn; medians over the rounds, ratios to always running ahead taken within each round. The last line is JSON.
"""

from __future__ import annotations

import ctypes
import random
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

if sys.platform == "linux":
    ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)

from tests.bench import report
from tests.bench.in_process import BenchModel, Generated, play, row_spec
from tests.bench.models import SIZES, write_model
from tests.bench.outcome import Outcome
from tests.bench.workloads import FIRST_ID, LAST_ID, Item, Sampling

from mlxq_worker.engine.api import RowSpec
from mlxq_worker.engine.engine import BatchEngine

WAYS = {"always": True, "never": False, "where_it_pays": None}
MEANS = (5, 15, 60)
LONGEST = 4
"""Times the average: no answer is longer."""


@click.command(help=__doc__)
@click.option("--model", "size", type=click.Choice(list(SIZES)), default="6m", show_default=True)
@click.option("--width", type=click.IntRange(1), default=32, show_default=True)
@click.option("--mean", "means", multiple=True, type=click.IntRange(2), default=MEANS, help="[default: 5, 15, 60]")
@click.option("--requests", type=click.IntRange(1), default=200, show_default=True)
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True)
@report.json_option
def main(size: str, width: int, means: tuple[int, ...], requests: int, runs: int, json_path: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = BenchModel.load(write_model(size, Path(folder))).model
    figures = [measure(model, ended_by_tokens(model, width, mean, requests), width, runs) for mean in means]
    report.publish({"model": size, "width": width, "runs": runs, "answers": figures}, json_path)


def measure(model: Any, specs: list[RowSpec], width: int, runs: int) -> dict[str, Any]:
    """Each way's tokens per second, its ratio to always running ahead, and its useful share of the computed rows."""
    rounds = [{way: timed(model, specs, width, pipelined) for way, pipelined in WAYS.items()} for _ in range(runs + 1)]
    rounds = rounds[1:]  # the first one warms up
    figures: dict[str, Any] = {"mean_tokens": round(rounds[0]["always"].num_tokens / len(specs), 1)}
    for way in WAYS:
        ratios = [outcomes[way].tokens_per_s / outcomes["always"].tokens_per_s for outcomes in rounds]
        figures[way] = {
            "tokens_per_s": round(statistics.median(outcomes[way].tokens_per_s for outcomes in rounds), 1),
            **report.spread(ratios),
            "row_efficiency": round(rounds[0][way].row_efficiency, 4),
        }
    print(figures, file=sys.stderr)
    return figures


def ended_by_tokens(model: Any, width: int, mean: int, num_rows: int) -> list[RowSpec]:
    """Sampled rows, each with an end token that first comes up about where its answer is to end: lengths are
    exponential."""
    rng = random.Random(mean)
    longest = LONGEST * mean
    items = (
        Item(
            tuple(rng.choices(range(FIRST_ID, LAST_ID), k=rng.randint(16, 64))),
            longest,
            Sampling(temperature=1.0, seed=index),
        )
        for index in range(num_rows)
    )
    specs = [row_spec(index, item) for index, item in enumerate(items)]
    unended = generate(model, specs, width, pipelined=False).tokens
    lengths = [min(longest, round(rng.expovariate(1 / mean))) for _ in specs]
    end_ids = map(_token_first_at, unended, lengths)
    return [
        replace(spec, end_tokens={end_id: "end"}, eos_ids=frozenset({end_id}))
        for spec, end_id in zip(specs, end_ids, strict=True)
    ]


def _token_first_at(token_ids: tuple[int, ...], length: int) -> int:
    """The first token from there on that has not come up before; the last new one if there is none."""
    new = [index for index, token_id in enumerate(token_ids) if token_id not in token_ids[:index]]
    return token_ids[next((index for index in new if index + 1 >= length), new[-1])]


def generate(model: Any, specs: list[RowSpec], width: int, pipelined: bool | None) -> Generated:
    """Run all rows through a fresh engine."""
    return play(BatchEngine(model, lambda ids: "", max_num_seqs=width, pipelined=pipelined), specs)


def timed(model: Any, specs: list[RowSpec], width: int, pipelined: bool | None) -> Outcome:
    """The same, with what it took."""
    start = time.perf_counter()
    generated = generate(model, specs, width, pipelined)
    seconds = time.perf_counter() - start
    num_tokens = sum(map(len, generated.tokens))
    return Outcome(tuple(map(str, generated.tokens)), num_tokens, seconds, generated.rows_computed)


if __name__ == "__main__":
    main()
