"""Cost per token and memory as the queue gets longer: from 500 to 20,000 short requests, all queued at once.

    python -m tests.bench.queue_length

One worker process and one private Redis for all lengths, `mlxq run`'s own path. Both figures should stay flat: seconds
per token, and the most memory that the worker process has held. The last line is JSON.
"""

from __future__ import annotations

import ctypes
import os
import random
import sys
import tempfile
from functools import partial
from pathlib import Path

import click

if sys.platform == "linux":
    ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)

from tests.bench import report
from tests.bench.in_process import BenchModel
from tests.bench.models import SIZES, write_model
from tests.bench.services import mlxq_run
from tests.bench.workloads import FIRST_ID, LAST_ID, Item, Workload

LENGTHS = (500, 2_000, 5_000, 20_000)


@click.command(help=__doc__)
@click.option("--model", "size", type=click.Choice(list(SIZES)), default="6m", show_default=True)
@click.option("--width", type=click.IntRange(1), default=32, show_default=True)
@click.option("--length", "lengths", multiple=True, type=click.IntRange(1), default=LENGTHS)
@report.json_option
def main(size: str, width: int, lengths: tuple[int, ...], json_path: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench = BenchModel.load(write_model(size, Path(folder)))
        with mlxq_run(bench, width, max_inflight=max(lengths)) as run:
            run(short_requests(4 * width))
            figures = []
            for length in lengths:
                outcome = run(short_requests(length))
                figures.append(
                    {
                        "queued": length,
                        "ms_per_token": round(1000 * outcome.seconds / outcome.num_tokens, 4),
                        "largest_process_mb": round(max(map(peak_resident_mb, descendants(os.getpid()))), 1),
                    }
                )
                print(figures[-1], file=sys.stderr)
    report.publish({"model": size, "width": width, "lengths": figures}, json_path)


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


def peak_resident_mb(pid: int) -> float:
    """The most resident memory that the process has held so far (Linux), in MiB."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


if __name__ == "__main__":
    main()
