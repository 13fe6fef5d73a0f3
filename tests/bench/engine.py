"""The engine beside `mlx_lm.batch_generate` and static batches: tokens per second and row efficiency.

    python -m tests.bench.engine --workload spread --model 6m --width 32

One process, greedy, float32, the same random weights. The systems take turns; each figure is the median over the
rounds. The last line is JSON.
"""

from __future__ import annotations

import ctypes
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path

import click

if sys.platform == "linux":
    ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)

from mlx_lm.utils import load_model
from rich.console import Console
from rich.table import Table
from tests.bench.models import SIZES, write_model
from tests.bench.rivals import RIVALS, Outcome
from tests.bench.workloads import WORKLOADS, Workload

REFERENCE = "batch_generate"


@click.command(help=__doc__)
@click.option("--workload", "name", type=click.Choice(list(WORKLOADS)), default="spread")
@click.option("--model", "size", type=click.Choice(list(SIZES)), default="6m")
@click.option("--width", type=click.IntRange(1), default=32)
@click.option("--runs", type=click.IntRange(1), default=3)
@click.option("--seed", type=int, default=7)
@click.option("--only", multiple=True, type=click.Choice(list(RIVALS)), help="Leave the other systems out.")
def main(name: str, size: str, width: int, runs: int, seed: int, only: tuple[str, ...]) -> None:
    workload = WORKLOADS[name](random.Random(seed))
    chosen = {rival: RIVALS[rival] for rival in (only or RIVALS)}
    with tempfile.TemporaryDirectory() as folder:
        model, _ = load_model(write_model(size, Path(folder)))
    warm_up = Workload(name, workload.items[: 2 * width])
    outcomes: dict[str, list[Outcome]] = {rival: [] for rival in chosen}
    for run in chosen.values():
        run(model, warm_up, width)
    for round_number in range(1, runs + 1):
        for rival, run in chosen.items():
            outcomes[rival].append(run(model, workload, width))
            print(f"round {round_number} {rival}: {outcomes[rival][-1].tokens_per_s:.0f} tokens/s", file=sys.stderr)
    report = summarise(outcomes)
    show(report, f"{name}, {len(workload.items)} requests, model {size}, width {width}")
    print(json.dumps({"workload": name, "model": size, "width": width, "runs": runs, "systems": report}))


def summarise(outcomes: dict[str, list[Outcome]]) -> dict[str, dict[str, float]]:
    """Per system: median tokens/s, its ratio to `batch_generate`, row efficiency, and the share of requests whose
    tokens are the reference's."""
    reference = outcomes.get(REFERENCE) or next(iter(outcomes.values()))
    base = statistics.median(outcome.tokens_per_s for outcome in reference)
    return {
        rival: {
            "tokens_per_s": round(statistics.median(run.tokens_per_s for run in runs), 1),
            "ratio": round(statistics.median(run.tokens_per_s for run in runs) / base, 3),
            "row_efficiency": round(statistics.median(run.row_efficiency for run in runs), 4),
            "same_tokens": round(same_tokens(runs[0], reference[0]), 4),
        }
        for rival, runs in outcomes.items()
    }


def same_tokens(outcome: Outcome, reference: Outcome) -> float:
    """The share of requests that got exactly the reference's tokens."""
    pairs = list(zip(outcome.tokens, reference.tokens, strict=True))
    return sum(ours == theirs for ours, theirs in pairs) / len(pairs)


def show(report: dict[str, dict[str, float]], title: str) -> None:
    """Print the table for people."""
    columns = list(next(iter(report.values())))
    table = Table("system", *columns, title=title)
    for rival, figures in report.items():
        table.add_row(rival, *(f"{figures[column]:g}" for column in columns))
    Console().print(table)


if __name__ == "__main__":
    main()
