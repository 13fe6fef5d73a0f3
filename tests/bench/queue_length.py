"""Cost per token and memory as the queue gets longer: from 500 to 20,000 short requests, all queued at once.

    python -m tests.bench.queue_length

One worker process and one private Redis for all lengths, `mlxq run`'s own path. The lengths take turns; medians over
the rounds, ratios to the first length taken within each round. Both figures should stay flat: what a token costs, and
the most memory that a process has held by the end of the first round's turn. The last line is JSON.
"""

from __future__ import annotations

import ctypes
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

if sys.platform == "linux":
    ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)

from tests.bench import report
from tests.bench.in_process import BenchModel
from tests.bench.models import SIZES, write_model
from tests.bench.outcome import Outcome
from tests.bench.resources import peak_resident_mib
from tests.bench.services import mlxq_run
from tests.bench.workloads import FIRST_ID, LAST_ID, Item, Workload

LENGTHS = (500, 2_000, 5_000, 20_000)
LEAST_REQUESTS = 2_000
"""In a turn: shorter files are answered again and again, since a few seconds say little on a noisy machine."""


@click.command(help=__doc__)
@click.option("--model", "size", type=click.Choice(list(SIZES)), default="6m", show_default=True)
@click.option("--width", type=click.IntRange(1), default=32, show_default=True)
@click.option("--length", "lengths", multiple=True, type=click.IntRange(1), default=LENGTHS)
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True)
@report.json_option
def main(size: str, width: int, lengths: tuple[int, ...], runs: int, json_path: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench = BenchModel.load(write_model(size, Path(folder)))
        with mlxq_run(bench, width, max_inflight=max(lengths)) as run:
            run(short_requests(4 * width))
            rounds = [{length: measure(run, length) for length in lengths} for _ in range(runs)]
    first = [turns[lengths[0]].ms_per_token for turns in rounds]
    figures = [{"queued": length, **_figures([turns[length] for turns in rounds], first)} for length in lengths]
    report.publish({"model": size, "width": width, "runs": runs, "lengths": figures}, json_path)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a token took in one turn, and the most memory that a process has held until then."""

    ms_per_token: float
    peak_mb: float


def measure(run: Callable[[Workload], Outcome], length: int) -> Measured:
    """Answer files of so many requests."""
    outcomes = [run(short_requests(length)) for _ in range(max(1, LEAST_REQUESTS // length))]
    ms_per_token = 1000 * sum(each.seconds for each in outcomes) / sum(each.num_tokens for each in outcomes)
    measured = Measured(ms_per_token, max(map(peak_resident_mib, descendants(os.getpid()))))
    print(f"{length} queued: {measured}", file=sys.stderr)
    return measured


def _figures(turns: Sequence[Measured], first: Sequence[float]) -> dict[str, Any]:
    """Medians of a length's turns; `first` is what a token took at the first length in the same rounds."""
    ratios = [turn.ms_per_token / other for turn, other in zip(turns, first, strict=True)]
    return {
        "ms_per_token": round(statistics.median(turn.ms_per_token for turn in turns), 3),
        **report.spread(ratios),
        "largest_process_mb": round(turns[0].peak_mb, 1),
    }


def short_requests(length: int) -> Workload:
    """Prompts of 8 to 24 tokens, answers of 4 to 8."""
    rng = random.Random(length)
    prompt = partial(rng.choices, range(FIRST_ID, LAST_ID))
    items = (Item(tuple(prompt(k=rng.randint(8, 24))), rng.randint(4, 8)) for _ in range(length))
    return Workload(f"{length} short requests", tuple(items))


def descendants(pid: int) -> list[int]:
    """All processes below this one (Linux)."""
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()
    ]
    return children + [below for child in children for below in descendants(child)]


if __name__ == "__main__":
    main()
