"""Where a step's time goes: the model's layers, attention, cache, head, sampling, host, and waiting.

    python -m tests.bench.step_profile --workload uniform --workload mixed

The engine runs in this process, one step at a time, and every part is computed before the next one starts: the shares
are those of the work itself, without what running ahead hides. `alone_s` is the same workload unprofiled and
pipelined. `waiting` is measured in a worker on a queue: the share of the time between its first and its last step in
which its thread was not inside the engine. The last line is JSON.
"""

from __future__ import annotations

import ctypes
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import click

if sys.platform == "linux":
    ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)

import mlx.core as mx
from rich.console import Console
from rich.table import Table
from tests.bench import report
from tests.bench.in_process import BenchModel, row_spec
from tests.bench.models import SIZES, write_model
from tests.bench.services import process, through_files
from tests.bench.timed_worker import NOTES_VARIABLE
from tests.bench.workloads import WORKLOADS, Workload

from mlxq.queue.client import Client
from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.engine.runners.packed_model import PackedModel
from mlxq_worker.engine.runners.slot_cache import SlotCache
from mlxq_worker.engine.sampling.batch_sampler import BatchSampler
from mlxq_worker.supervision.redis_server import private_redis

PARTS = ("layers", "attention", "cache", "head", "sampling", "host")


class Stopwatch:
    """Seconds by part. Parts nest, and a part's seconds don't count for the one around it."""

    def __init__(self) -> None:
        self.seconds = Counter[str]()
        self._within = [0.0]

    def timed(self, part: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function whose arguments are computed first, and wait for what it returns."""
        mx.eval([value for value in (*args, *kwargs.values()) if isinstance(value, mx.array)])
        start = time.perf_counter()
        self._within.append(0.0)
        result = function(*args, **kwargs)
        mx.eval(getattr(result, "tokens", result))
        elapsed = time.perf_counter() - start
        self.seconds[part] += elapsed - self._within.pop()
        self._within[-1] += elapsed
        return result


@click.command(help=__doc__)
@click.option("--workload", "names", multiple=True, type=click.Choice(list(WORKLOADS)), default=["uniform", "mixed"])
@click.option("--model", "size", type=click.Choice(list(SIZES)), default="6m", show_default=True)
@click.option("--width", type=click.IntRange(1), default=32, show_default=True)
@click.option("--requests", type=click.IntRange(1), help="Cut every workload to so many requests.")
@click.option("--seed", type=int, default=7, show_default=True)
@report.json_option
def main(
    names: tuple[str, ...], size: str, width: int, requests: int | None, seed: int, json_path: Path | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench = BenchModel.load(write_model(size, Path(folder)))
        figures = {}
        for name in names:
            workload = WORKLOADS[name](random.Random(seed)).first(requests)
            figures[name] = profile(bench, workload, width)
            figures[name]["waiting"] = waiting(bench, workload, width)
    show(figures, f"share of a step, model {size}, width {width}")
    report.publish({"model": size, "width": width, "workloads": figures}, json_path)


def profile(bench: BenchModel, workload: Workload, width: int) -> dict[str, float]:
    """Each part's share of all steps' time, and the seconds of the run profiled and alone."""
    engine = BatchEngine(bench.model, lambda ids: "", max_num_seqs=width)
    steps_through(engine, workload.first(2 * width))
    alone_s = steps_through(engine, workload)
    stepwise = BatchEngine(bench.model, lambda ids: "", max_num_seqs=width, pipelined=False)
    stopwatch = Stopwatch()
    with watched(stopwatch):
        profiled_s = steps_through(stepwise, workload)
    stopwatch.seconds["host"] = profiled_s - stopwatch.seconds.total()
    shares = {part: round(stopwatch.seconds[part] / profiled_s, 4) for part in PARTS}
    return {**shares, "profiled_s": round(profiled_s, 3), "alone_s": round(alone_s, 3)}


def steps_through(engine: BatchEngine, workload: Workload) -> float:
    """Seconds that an idle engine takes for a workload."""
    for index, item in enumerate(workload.items):
        engine.admit(row_spec(index, item))
    start = time.perf_counter()
    report = engine.step(0.0)
    while report.num_running or report.num_waiting:
        report = engine.step(0.0)
    return time.perf_counter() - start


@contextmanager
def watched(stopwatch: Stopwatch) -> Iterator[None]:
    """Have the parts of the packed runner timed for the block."""
    methods: list[tuple[str, Any, str]] = [
        ("layers", PackedModel, "hidden"),
        ("head", PackedModel, "logits"),
        ("attention", SlotCache, "attend"),
        ("cache", SlotCache, "update_and_fetch"),
        ("sampling", BatchSampler, "sample"),
    ]
    with ExitStack() as stack:
        for part, owner, name in methods:
            # Through a lambda, which binds to the instance as the method did.
            timed = partial(stopwatch.timed, part, getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, lambda *args, _timed=timed, **kw: _timed(*args, **kw)))
        yield


def waiting(bench: BenchModel, workload: Workload, width: int) -> float:
    """The share of a queue run in which the worker's MLX thread was outside its engine."""
    with tempfile.TemporaryDirectory() as folder, private_redis() as redis:
        notes = Path(folder) / "steps.json"
        worker = [sys.executable, "-m", "rq.cli", "worker", "--quiet", "--serializer", "json", "--url", redis.url]
        variables = {
            "MLXQ_MODEL": str(bench.path),
            "MLXQ_MAX_NUM_SEQS": str(width),
            NOTES_VARIABLE: str(notes),
        }
        client = Client(redis.url)
        with process([*worker, "-w", "tests.bench.timed_worker.TimedWorker", "mlxq"], variables) as running:
            through_files(client, running, Path(folder), workload.first(2 * width))
            start = time.monotonic()
            through_files(client, running, Path(folder), workload)
        client.close()
        steps = [(begin, end) for begin, end in json.loads(notes.read_text()) if begin >= start]
    inside = sum(end - begin for begin, end in steps)
    return round(1 - inside / (steps[-1][1] - steps[0][0]), 4)


def show(figures: dict[str, dict[str, float]], title: str) -> None:
    """Print the table for people."""
    columns = list(next(iter(figures.values())))
    table = Table("workload", *columns, title=title)
    for name, own in figures.items():
        table.add_row(name, *(f"{own[column]:g}" for column in columns))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
