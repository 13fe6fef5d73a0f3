"""The same prompts through `mlxq run`'s own path and through `mlx_lm.batch_generate`: useful tokens per second.

    python -m tests.bench.throughput --workload mixed --model 6m --width 32

Ours is a file of requests, a private Redis, a worker process, and a file of answers: what `mlxq run` does, less the
start of its processes. The rival has its prompts as lists in memory and the model in this process. Both are warm.
Greedy, float32, random weights, no end token in force; medians over the rounds, which take turns. The last line is
JSON.
"""

from __future__ import annotations

import ctypes
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

if sys.platform == "linux":
    ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)

import mlx_lm
from tests.bench.models import SIZES, write_model
from tests.bench.workloads import WORKLOADS, Workload

from mlxq import bulk
from mlxq.client import Client
from mlxq.files import read_requests
from mlxq_worker.commands.run import worker_command
from mlxq_worker.redis_server import private_redis
from mlxq_worker.worker_process import WorkerProcess


@dataclass(frozen=True, slots=True)
class Answers:
    """One run: the text of every request in order, and how long they took together."""

    texts: tuple[str, ...]
    seconds: float


class Queue:
    """A private Redis and a worker on it that has loaded its model; `run` sends a workload through files."""

    def __init__(self, client: Client, worker: WorkerProcess, folder: Path) -> None:
        self._client = client
        self._worker = worker
        self._folder = folder

    def run(self, workload: Workload) -> Answers:
        """Answer a file of requests into a file of answers."""
        source, target = self._folder / "requests.jsonl", self._folder / "answers.jsonl"
        source.write_text("".join(json.dumps(line) + "\n" for line in request_lines(workload)))
        start = time.perf_counter()
        summary = bulk.process(
            self._client,
            read_requests(source),
            target,
            self._folder / "errors.jsonl",
            on_turn=lambda tally: self._check(tally.succeeded + tally.failed),
            resume=False,
            ordered=True,
        )
        seconds = time.perf_counter() - start
        if summary.failed:
            raise RuntimeError(f"{summary.failed} requests failed")
        return Answers(tuple(_text(line) for line in target.read_text().splitlines()), seconds)

    def _check(self, num_done: int) -> bool:
        self._worker.check(num_done)
        return True


@contextmanager
def running_queue(model: Path, width: int) -> Iterator[Queue]:
    """Start a Redis and a worker for the block."""
    with tempfile.TemporaryDirectory() as folder, private_redis() as redis:
        client = Client(redis.url)
        command = worker_command("mlxq", model=str(model), max_num_seqs=width)
        tell = partial(click.echo, err=True)
        with WorkerProcess(command, {"MLXQ_URL": redis.url}, tell=tell) as worker:
            yield Queue(client, worker, Path(folder))
        client.close()


class BatchGenerate:
    """The rival: `mlx_lm.batch_generate` on the same model in this process."""

    def __init__(self, model: Path, width: int) -> None:
        self._model, self._tokenizer = mlx_lm.load(str(model))
        self._tokenizer.eos_token_ids = None
        self._width = width

    def run(self, workload: Workload) -> Answers:
        """Answer prompts that are lists of ids already."""
        start = time.perf_counter()
        response = mlx_lm.batch_generate(
            self._model,
            self._tokenizer,
            [list(item.prompt) for item in workload.items],
            max_tokens=[item.num_tokens for item in workload.items],
            completion_batch_size=self._width,
            prefill_batch_size=min(8, self._width),
        )
        return Answers(tuple(response.texts), time.perf_counter() - start)


def request_lines(workload: Workload) -> list[dict[str, object]]:
    """The workload as batch lines; prompts are token ids, so that both sides see the same ones."""
    return [
        {
            "custom_id": str(index),
            "body": {"prompt": list(item.prompt), "max_tokens": item.num_tokens, "temperature": 0, "ignore_eos": True},
        }
        for index, item in enumerate(workload.items)
    ]


@click.command(help=__doc__)
@click.option("--workload", "names", multiple=True, type=click.Choice(list(WORKLOADS)), default=["mixed"])
@click.option("--model", "size", type=click.Choice(list(SIZES)), default="6m")
@click.option("--width", type=click.IntRange(1), default=32)
@click.option("--runs", type=click.IntRange(1), default=3)
@click.option("--seed", type=int, default=7)
def main(names: tuple[str, ...], size: str, width: int, runs: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(size, Path(folder))
        rival = BatchGenerate(model, width)
        with running_queue(model, width) as queue:
            figures = [measure(WORKLOADS[name](random.Random(seed)), queue, rival, width, runs) for name in names]
    print(json.dumps({"model": size, "width": width, "runs": runs, "workloads": figures}))


def measure(workload: Workload, queue: Queue, rival: BatchGenerate, width: int, runs: int) -> dict[str, object]:
    """Run both sides in turn, and print and return the medians."""
    warm_up = Workload(workload.name, workload.items[: 2 * width])
    queue.run(warm_up)
    rival.run(warm_up)
    pairs = [(queue.run(workload), rival.run(workload)) for _ in range(runs)]
    ours, theirs = (
        workload.num_tokens / statistics.median(side.seconds for side in sides) for sides in zip(*pairs, strict=True)
    )
    same = [mine == other for mine, other in zip(pairs[0][0].texts, pairs[0][1].texts, strict=True)]
    figures = {
        "workload": workload.name,
        "requests": len(workload.items),
        "mlxq_run_tokens_per_s": round(ours, 1),
        "batch_generate_tokens_per_s": round(theirs, 1),
        "ratio": round(ours / theirs, 3),
        "same_text": round(sum(same) / len(same), 4),
    }
    print(", ".join(f"{name}: {value}" for name, value in figures.items()))
    return figures


def _text(line: str) -> str:
    text: str = json.loads(line)["response"]["body"]["choices"][0]["text"]
    return text


if __name__ == "__main__":
    main()
