"""How many requests a second the queue itself carries, and what memory that takes: no model, everything else real.

    python -m tests.bench.queue_rate
    python -m tests.bench.queue_rate --requests 10000 --requests 1000000 --way collect --no-alone

A real Redis, and the real worker in front of an engine that is played and takes no time. For each number of requests:

- `run`: `mlxq run --workers 0`, a process of its own, from a file of short requests to a file of answers;
- `collect`: `mlxq collect --follow --delete` of a batch that another process enqueues meanwhile, with the same window;
- of each process, Redis and the worker too: the most resident memory that it has held, in MB, and its processor time,
  in seconds for 10,000 requests. On a machine with other work to do that says more than the clock.

Then what it takes to enqueue alone: our `Client.submit` of the file, which reads, checks and hashes every line and
keeps a batch, and RQ's bare `Queue.enqueue_many` of the same payloads; taking turns, each into an empty Redis. And
RQ's `enqueue_many` with its own `SimpleWorker` on a job that does nothing, and what a request takes in Redis if nobody
deletes it, while it waits and once it is answered. The last line is JSON. For Linux.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
from redis import Redis
from rq.queue import Queue
from rq.serializers import JSONSerializer
from rq.worker import SimpleWorker
from tests.bench import report
from tests.bench.resources import Resources
from tests.bench.services import Process, process
from tests.support.fake_engine import FakeEngine, FakeWorker
from tests.support.processes import MLXQ, RQ, environment

from mlxq import keys
from mlxq.files.input import read_requests
from mlxq.queue.batch import Batch
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
@click.option("--way", "ways", multiple=True, type=click.Choice(["run", "collect"]), default=["run", "collect"])
@click.option("--alone/--no-alone", default=True, help="Also measure enqueueing alone, and RQ's own worker.")
@report.json_option
def main(
    counts: Sequence[int], enqueued: int, rounds: int, ways: Sequence[str], alone: bool, json_path: Path | None
) -> None:
    figures: dict[str, Any] = {"cores": os.cpu_count(), "files": []}
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            figures["files"].append({"requests": count, **through_files(Path(folder), count, ways)})
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


def through_files(folder: Path, count: int, ways: Sequence[str]) -> dict[str, Any]:
    """The ways through the queue, each on a Redis and with a worker of its own."""
    given = write_input(folder / f"{count}.jsonl", count)
    output = given.with_suffix(".out.jsonl")
    found = {}
    for way in ways:
        found[way] = measured(partial(WAYS[way], given, output), count)
        check_output(output, count)
        output.unlink()
    return found


Started = dict[str, subprocess.Popen[str]]
"""Processes by what they are."""


def measured(start: Callable[[str], Started], count: int) -> dict[str, Any]:
    """The rate of one way, and what all that have a part in it take."""
    with private_redis() as redis, Redis.from_url(redis.url) as client, working(client, redis.url) as worker:
        lasting = {"worker": Resources(worker.pid), "redis": Resources(client.info("server")["process_id"])}
        for each in lasting.values():
            each.look()
        before = {name: each.cpu_s for name, each in lasting.items()}
        began = time.monotonic()
        taken = until_ended(start(redis.url))
        seconds = time.monotonic() - began
        for each in lasting.values():
            each.look()
    taken |= lasting
    cpu_s = {name: each.cpu_s - before.get(name, 0.0) for name, each in taken.items()}
    return {
        "requests_per_s": round(count / seconds),
        "seconds": round(seconds, 1),
        "peak_mb": {name: round(each.peak_mb) for name, each in taken.items()},
        "cpu_s_per_10_000": {name: round(10_000 * spent / count, 2) for name, spent in cpu_s.items()},
    }


@contextmanager
def working(client: Redis, url: str) -> Iterator[Process]:
    """A worker, once it is there."""
    command = [*RQ, "worker", "-w", "tests.bench.queue_rate.InstantWorker", "--serializer", "json"]
    variables = {"MLXQ_MODEL": "fake", "MLXQ_MAX_NUM_SEQS": str(WIDTH)}
    with process([*command, "--url", url, "--quiet", keys.DEFAULT_QUEUE], variables) as worker:
        while not client.keys("rq:worker:*"):
            if worker.poll() is not None:
                raise click.ClickException(f"the worker ended with {worker.returncode} as it began")
            time.sleep(LOOK_EVERY_S)
        yield worker


def run(given: Path, output: Path, url: str) -> Started:
    """`mlxq run`."""
    return {"producer": started([*MLXQ, "run", "-i", str(given), "-o", str(output), "--url", url, "--workers", "0"])}


def collect(given: Path, output: Path, url: str) -> Started:
    """`mlxq enqueue` and `mlxq collect --follow` side by side."""
    window = ["--max-inflight", str(keys.DEFAULT_MAX_INFLIGHT)]
    enqueuing = started([*MLXQ, "enqueue", "-i", str(given), "--url", url, "--batch-id", "b", *window])
    with Redis.from_url(url) as client:
        while not client.exists(keys.batch("b")):
            time.sleep(0.01)
    following = started([*MLXQ, "collect", "b", "-o", str(output), "--follow", "--delete", "--url", url])
    return {"producer": enqueuing, "collector": following}


WAYS = {"run": run, "collect": collect}


def started(command: Sequence[str]) -> subprocess.Popen[str]:
    """A process that says nothing unless it fails."""
    return subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def until_ended(processes: Started) -> dict[str, Resources]:
    """What each process has taken, once all have come to their ends."""
    taken = {name: Resources(each.pid) for name, each in processes.items()}
    running = set(processes)
    while running:
        for name in list(running):
            if not taken[name].look():
                running.remove(name)
        time.sleep(LOOK_EVERY_S)
    for each in processes.values():
        _, complaint = each.communicate()
        if each.returncode:
            raise click.ClickException(f"{each.args} ended with {each.returncode}: {complaint}")
    return taken


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
        kept = kept_bytes(client, redis.url, given)
        client.close()
    ratios = [theirs / ours for ours, theirs in zip(taken["mlxq"], taken["rq"], strict=True)]
    rates = {name: round(len(payloads) / statistics.median(seconds)) for name, seconds in taken.items()}
    return {"enqueue_per_s": rates, "enqueue": report.spread(ratios), "stock_worker_per_s": stock, **kept}


def kept_bytes(client: Redis, url: str, given: Path) -> dict[str, int]:
    """What a request takes in Redis until it is answered, and then until it is deleted."""
    client.flushall()
    taken = [client.info("memory")["used_memory"]]
    batch = submit(url, given)
    taken.append(client.info("memory")["used_memory"])
    with working(client, url):
        count = batch.wait().total
    taken.append(client.info("memory")["used_memory"])
    return {"waiting_bytes": (taken[1] - taken[0]) // count, "answered_bytes": (taken[2] - taken[0]) // count}


def submit(url: str, given: Path) -> Batch:
    """Ours, from the file."""
    with Client(url) as client:
        return client.submit(line for line in read_requests(given) if isinstance(line, ParsedLine))


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
