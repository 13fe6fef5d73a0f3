"""How many requests a second the queue itself carries, and what memory that takes: no model, everything else real.

    python -m tests.bench.queue_rate
    python -m tests.bench.queue_rate --requests 1000000

A real Redis, and the real worker in front of an engine that is played and takes no time. For each number of requests:

- `run`: `mlxq run --workers 0`, a process of its own, from a file of short requests to a file of answers;
- `collect`: `mlxq collect --follow --delete` of a batch that another process enqueues meanwhile, with the same window;
- memory: the most that each of these processes has held, and Redis meanwhile.

Then what it takes to enqueue alone: our `Client.submit` of the file, which reads, checks and hashes every line and
keeps a batch, and RQ's bare `Queue.enqueue_many` of the same payloads; taking turns, each into an empty Redis. And
RQ's `enqueue_many` with its own `SimpleWorker` on a job that does nothing. The last line is JSON. For Linux.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from redis import Redis
from rq.queue import Queue
from rq.serializers import JSONSerializer
from rq.worker import SimpleWorker
from tests.bench import report
from tests.bench.queue_length import peak_resident_mb
from tests.bench.services import process
from tests.support.fake_engine import FakeEngine, FakeWorker
from tests.support.processes import MLXQ, RQ, environment

from mlxq import keys
from mlxq.files.input import read_requests
from mlxq.queue.client import Client
from mlxq.requests.openai import ParsedLine
from mlxq_worker.backend import Backend
from mlxq_worker.config import WorkerConfig
from mlxq_worker.supervision.redis_server import private_redis

WIDTH = 64
COUNTS = (10_000, 20_000)
LOOK_EVERY_S = 0.05


class InstantWorker(FakeWorker):
    """The real worker; its engine answers at once."""

    def load_backend(self, config: WorkerConfig) -> Backend:
        backend = super().load_backend(config)
        return Backend(backend.preparer, lambda: FakeEngine(WIDTH), WIDTH, backend.description)


@click.command(help=__doc__)
@click.option("--requests", "counts", multiple=True, type=click.IntRange(1), default=COUNTS, show_default=True)
@click.option("--enqueued", type=click.IntRange(1), default=10_000, show_default=True, help="For enqueueing alone.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--collect/--no-collect", "collects", default=True, help="Also measure `mlxq collect --follow`.")
@click.option("--alone/--no-alone", default=True, help="Also measure enqueueing alone, and RQ's own worker.")
@report.json_option
def main(
    counts: Sequence[int], enqueued: int, rounds: int, collects: bool, alone: bool, json_path: Path | None
) -> None:
    figures: dict[str, Any] = {"cores": os.cpu_count(), "files": []}
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            figures["files"].append({"requests": count, **through_files(Path(folder), count, collects)})
            print(f"{figures['files'][-1]}", file=sys.stderr)
        if alone:
            figures |= enqueue_alone(write_input(Path(folder) / "alone.jsonl", enqueued), rounds)
    report.publish(figures, json_path)


def write_input(path: Path, count: int) -> Path:
    """Requests whose answers are one token long."""
    with path.open("w") as out:
        for number in range(count):
            body = {"prompt": f"What is the number after {number}?", "max_tokens": 1, "temperature": 0}
            out.write(json.dumps({"custom_id": f"request-{number:07}", "url": "/v1/completions", "body": body}) + "\n")
    return path


# --- From file to file ----------------------------------------------------------------------------------------


def through_files(folder: Path, count: int, collects: bool) -> dict[str, Any]:
    """Both ways through the queue, each on a Redis and with a worker of its own."""
    given = write_input(folder / f"{count}.jsonl", count)
    output = given.with_suffix(".out.jsonl")
    found = {"run": measured(lambda url: run(url, given, output), count)}
    check_output(output, count)
    if collects:
        output.unlink()
        found["collect"] = measured(lambda url: collect(url, given, output), count)
        check_output(output, count)
    output.unlink()
    return found


def measured(task: Callable[[str], dict[str, Any]], count: int) -> dict[str, Any]:
    """The rate of one task, and the memory of all that have a part in it."""
    worker = (*RQ, "worker", "-w", "tests.bench.queue_rate.InstantWorker", "--serializer", "json")
    with private_redis() as redis, process([*worker, "--url", redis.url, "--quiet", keys.DEFAULT_QUEUE], VARIABLES):
        client = Redis.from_url(redis.url)
        while not client.keys("rq:worker:*"):
            time.sleep(0.05)
        started = time.monotonic()
        memory = task(redis.url)
        seconds = time.monotonic() - started
        memory["redis_mb"] = round(client.info("memory")["used_memory_peak"] / 1e6)
        client.close()
    return {"requests_per_s": round(count / seconds), "seconds": round(seconds, 1), **memory}


VARIABLES = {"MLXQ_MODEL": "fake", "MLXQ_MAX_NUM_SEQS": str(WIDTH)}


def run(url: str, given: Path, output: Path) -> dict[str, Any]:
    """`mlxq run`, and the most memory that it held."""
    command = [*MLXQ, "run", "-i", str(given), "-o", str(output), "--url", url, "--workers", "0"]
    return dict(zip(["producer_mb"], ended(started(command)), strict=True))


def collect(url: str, given: Path, output: Path) -> dict[str, Any]:
    """`mlxq enqueue` and `mlxq collect --follow` side by side, and the most memory that each held."""
    enqueuing = started([*MLXQ, "enqueue", "-i", str(given), "--url", url, "--batch-id", "b", "--max-inflight", "4096"])
    with Redis.from_url(url) as client:
        while not client.exists(keys.batch("b")):
            time.sleep(0.01)
    following = started([*MLXQ, "collect", "b", "-o", str(output), "--follow", "--delete", "--url", url])
    return dict(zip(["producer_mb", "collector_mb"], ended(enqueuing, following), strict=True))


def started(command: Sequence[str]) -> subprocess.Popen[str]:
    """A process that says nothing unless it fails."""
    return subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def ended(*processes: subprocess.Popen[str]) -> list[int]:
    """The most resident memory, in MB, of each process once all have come to their ends."""
    peaks = dict.fromkeys(range(len(processes)), 0.0)
    while running := [number for number, process in enumerate(processes) if process.poll() is None]:
        for number in running:
            with suppress(OSError, KeyError):  # it has just ended
                peaks[number] = max(peaks[number], peak_resident_mb(processes[number].pid))
        time.sleep(LOOK_EVERY_S)
    for each in processes:
        assert each.stderr is not None
        if each.returncode:
            raise click.ClickException(f"{each.args} ended with {each.returncode}: {each.stderr.read()}")
    return [round(peak * 2**20 / 1e6) for peak in peaks.values()]


def check_output(output: Path, count: int) -> None:
    """Each id once."""
    with output.open("rb") as lines:
        numbers = [int(match[1]) for line in lines if (match := re.search(rb'"custom_id":"request-(\d+)"', line))]
    if sorted(numbers) != list(range(count)):
        raise click.ClickException(f"{output} hasn't each of {count} answers once")


# --- Enqueueing alone -----------------------------------------------------------------------------------------


def enqueue_alone(given: Path, rounds: int) -> dict[str, Any]:
    """Requests a second, and ours by theirs: medians over the rounds."""
    payloads = [line.payload for line in read_requests(given) if isinstance(line, ParsedLine)]
    with private_redis() as redis:
        client = Redis.from_url(redis.url)
        tasks = {"mlxq": lambda: submit(redis.url, given), "rq": lambda: enqueue_many(client, payloads)}
        taken: dict[str, list[float]] = {name: [] for name in tasks}
        for _ in range(rounds):
            for name, task in tasks.items():
                client.flushall()
                started = time.perf_counter()
                task()
                taken[name].append(time.perf_counter() - started)
        stock = stock_rate(client, payloads)
        client.close()
    ratios = [theirs / ours for ours, theirs in zip(taken["mlxq"], taken["rq"], strict=True)]
    rates = {name: round(len(payloads) / statistics.median(seconds)) for name, seconds in taken.items()}
    return {"enqueue_per_s": rates, "enqueue": report.spread(ratios), "stock_worker_per_s": stock}


def submit(url: str, given: Path) -> None:
    """Ours, from the file."""
    with Client(url) as client:
        client.submit(line for line in read_requests(given) if isinstance(line, ParsedLine))


def enqueue_many(client: Redis, payloads: Sequence[dict[str, Any]]) -> None:
    """RQ's, in chunks as large as ours."""
    queue = Queue("bare", connection=client, serializer=JSONSerializer)
    for start in range(0, len(payloads), keys.CHUNK):
        chunk = payloads[start : start + keys.CHUNK]
        queue.enqueue_many([Queue.prepare_data("builtins.len", args=[payload]) for payload in chunk])


def stock_rate(client: Redis, payloads: Sequence[dict[str, Any]]) -> int:
    """RQ's `enqueue_many` and one `SimpleWorker`, on a thousand jobs that do nothing."""
    client.flushall()
    few = payloads[:1000]
    started = time.perf_counter()
    enqueue_many(client, few)
    SimpleWorker(["bare"], connection=client, serializer=JSONSerializer).work(burst=True, logging_level="ERROR")
    return round(len(few) / (time.perf_counter() - started))


if __name__ == "__main__":
    main()
