"""Every workload through every system, side by side: useful tokens per second, and their ratios.

    python -m tests.bench.suite --model 6m --width 32
    python -m tests.bench.suite --workload mixed --system mlxq_run --system batch_generate

One process tree, one random float32 model, equal width. The systems take turns in every round; each figure is a median
over the rounds. `mlxq_run` is a file of requests, a private Redis, a worker, and a file of answers, all of it
counted but the start of the processes; `mlxq_engine` is the engine alone. The others are mlx-lm's ways to batch, with
prompts in memory; `stock_rq` and `mlx_lm_server` are slow, and get only the first requests of each workload
(`--sample`). The last line is JSON.
"""

from __future__ import annotations

import ctypes
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click

if sys.platform == "linux":
    ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)

from rich.console import Console
from rich.table import Table
from tests.bench import report
from tests.bench.in_process import IN_PROCESS, BenchModel
from tests.bench.models import SIZES, write_model
from tests.bench.outcome import Outcome, same_answers
from tests.bench.services import SERVICES
from tests.bench.workloads import WORKLOADS, Workload

REFERENCE = "batch_generate"
SYSTEMS = (
    "mlxq_run",
    "mlxq_engine",
    REFERENCE,
    "batch_generator_with_caches",
    "static_batches",
    "stock_rq",
    "mlx_lm_server",
)
SAMPLED = ("stock_rq", "mlx_lm_server")
GREEDY_ONLY = ("stock_rq", "mlx_lm_server")
"""A job of the stock worker knows no sampling; the server batches no requests that have a seed."""

TABLE_WIDTH = 120

Run = Callable[[Workload], Outcome]


@click.command(help=__doc__)
@click.option("--workload", "names", multiple=True, type=click.Choice(list(WORKLOADS)), help="[default: all]")
@click.option("--system", "systems", multiple=True, type=click.Choice(SYSTEMS), help="[default: all]")
@click.option("--model", "size", type=click.Choice(list(SIZES)), default="6m", show_default=True)
@click.option("--width", type=click.IntRange(1), default=32, show_default=True)
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True)
@click.option("--sample", type=click.IntRange(1), default=64, show_default=True, help="Requests for the slow systems.")
@click.option("--requests", type=click.IntRange(1), help="Cut every workload to so many requests.")
@click.option("--seed", type=int, default=7, show_default=True)
@report.json_option
def main(
    names: tuple[str, ...],
    systems: tuple[str, ...],
    size: str,
    width: int,
    runs: int,
    sample: int,
    requests: int | None,
    seed: int,
    json_path: Path | None,
) -> None:
    chosen = [system for system in SYSTEMS if system in (systems or SYSTEMS)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bench = BenchModel.load(write_model(size, folder))
        started = {system: _start(system, bench, width, sample, stack) for system in chosen}
        figures: dict[str, dict[str, Any]] = {}
        all_figures = {"model": size, "width": width, "runs": runs, "workloads": figures}
        for name in names or WORKLOADS:
            workload = WORKLOADS[name](random.Random(seed)).first(requests)
            figures[name] = measure(workload, _able(started, workload), width, runs)
            show(figures[name], f"{name}: {len(workload.items)} requests, model {size}, width {width}")
            report.write(all_figures, json_path)  # after each workload: all of them take long
    report.publish(all_figures, json_path)


def measure(workload: Workload, systems: dict[str, Run], width: int, runs: int) -> dict[str, dict[str, Any]]:
    """Warm all systems up, run them in turn, and return each one's figures."""
    outcomes: dict[str, list[Outcome]] = {system: [] for system in systems}
    for run in systems.values():
        run(workload.first(2 * width))
    for round_number in range(1, runs + 1):
        for system, run in systems.items():
            outcome = run(workload)
            outcomes[system].append(outcome)
            print(f"{workload.name} {round_number} {system}: {outcome.tokens_per_s:.0f} tokens/s", file=sys.stderr)
    reference = outcomes.get(REFERENCE) or next(iter(outcomes.values()))
    return {system: _figures(own, reference, workload) for system, own in outcomes.items()}


def _figures(own: Sequence[Outcome], reference: Sequence[Outcome], workload: Workload) -> dict[str, Any]:
    """One system's figures over all rounds, with its ratios to the reference."""
    ratios = [mine.tokens_per_s / theirs.tokens_per_s for mine, theirs in zip(own, reference, strict=True)]
    efficiency, peak = own[0].row_efficiency, own[0].peak_bytes
    return {
        "tokens_per_s": round(statistics.median(outcome.tokens_per_s for outcome in own), 1),
        **report.spread(ratios),
        "same_answers": round(same_answers(own[0], reference[0]), 4) if workload.is_greedy else None,
        "row_efficiency": efficiency and round(efficiency, 4),
        "peak_mb": peak and round(peak / 2**20, 1),
    }


def show(figures: dict[str, dict[str, Any]], title: str) -> None:
    """Print one workload's table for people."""
    columns = list(next(iter(figures.values())))
    table = Table("system", *columns, title=title)
    for system, own in figures.items():
        table.add_row(system, *("" if own[column] is None else f"{own[column]:g}" for column in columns))
    Console(width=TABLE_WIDTH).print(table)


def _start(system: str, bench: BenchModel, width: int, sample: int, stack: ExitStack) -> Run:
    if system in IN_PROCESS:
        return lambda workload: IN_PROCESS[system](bench, workload, width)
    run = stack.enter_context(SERVICES[system](bench, width))
    return partial(_run_first, run, sample) if system in SAMPLED else run


def _run_first(run: Run, sample: int, workload: Workload) -> Outcome:
    return run(workload.first(sample))


def _able(systems: dict[str, Run], workload: Workload) -> dict[str, Run]:
    return {system: run for system, run in systems.items() if workload.is_greedy or system not in GREEDY_ONLY}


if __name__ == "__main__":
    main()
