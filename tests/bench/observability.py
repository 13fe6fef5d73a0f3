"""What metrics and logs cost: a worker that counts, reports, is scraped every second and logs, and one that does not.

    python -m tests.bench.observability

Both run all the time, on queues of their own, and take turns at the same requests, so that each pair meets the same
machine. An engine that only counts to the limit shows the cost itself: `us_per_request` is processor time, the other
worker's and this one's, and `added_us_per_step` what the difference comes to for each of its steps. A random model of
6M parameters shows what share of the throughput that is: ratios of tokens per second and of processor time, taken
within each pair. A step of it is shorter than one of any model that is used. The last line is JSON.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from tests.bench import report
from tests.bench.models import write_model
from tests.bench.observed_worker import FAKE, SEEN, UNSEEN
from tests.support.waiting import wait_until

from mlxq.metrics.address import Address
from mlxq.metrics.queue_figures import QueueFigures
from mlxq.queue.client import Client
from mlxq.queue.connect import connect
from mlxq.requests.openai import text_request
from mlxq_worker.supervision.dead_workers import DeadWorkers
from mlxq_worker.supervision.metrics_port import open_port
from mlxq_worker.supervision.redis_server import private_redis
from mlxq_worker.supervision.supervisor import POLL_S, Supervisor
from mlxq_worker.supervision.totals import Totals
from mlxq_worker.supervision.worker_process import WorkerProcess

if sys.platform == "linux":
    ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)

SCRAPE_S = 1.0
"""Fifteen times as often as deploy/prometheus does."""
WIDTH = 32
PROMPT = "a prompt of about twenty tokens, the same for everybody"


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of one worker: the seconds that it took, and those of processor time that the worker used."""

    wall_s: float
    cpu_s: float


class Observed:
    """A worker process, looked after as `mlxq worker` does it, in this process."""

    def __init__(self, stack: ExitStack, redis_url: str, how: str, model: str) -> None:
        self._connection = stack.enter_context(connect(redis_url))
        self._client = Client(self._connection, queue=how)
        self._stopping = threading.Event()
        dead_workers = DeadWorkers(self._connection, [how])
        totals = Totals() if how == SEEN else None
        variables = {
            "MLXQ_URL": redis_url,
            "MLXQ_QUEUE": how,
            "MLXQ_MODEL": model,
            "MLXQ_MAX_NUM_SEQS": str(WIDTH),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        command = [sys.executable, "-m", "tests.bench.observed_worker", how, model]
        self._process = stack.enter_context(
            WorkerProcess(command, variables, tell=print, on_end=dead_workers.release, totals=totals)
        )
        threads = [threading.Thread(target=self._look_after, args=(Supervisor(self._process, dead_workers, 5.0),))]
        if totals is not None:
            queue_figures = QueueFigures(stack.enter_context(connect(redis_url)), [how])
            port = stack.enter_context(open_port(Address(0), totals, queue_figures, model=model, queues=[how]))
            threads.append(threading.Thread(target=self._scrape, args=(f"http://{port.address}/metrics",)))
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
        stack.callback(self._stopping.set)
        wait_until(lambda: self._client.num_workers(), f"the worker that is {how}")

    def answer(self, num_requests: int, num_tokens: int) -> Turn:
        """Have so many requests answered with so many tokens each."""
        body = {"max_tokens": num_tokens, "ignore_eos": True, "temperature": 0}
        requests = [text_request(PROMPT, custom_id=f"r{i}", defaults=body) for i in range(num_requests)]
        cpu_s, began = self._cpu_s(), time.perf_counter()
        batch = self._client.submit(requests)
        batch.wait()
        turn = Turn(time.perf_counter() - began, self._cpu_s() - cpu_s)
        assert batch.counts().num_ended == num_requests
        batch.delete()
        return turn

    def _cpu_s(self) -> float:
        """What all threads of the process have used (Linux)."""
        process = self._process.process
        assert process is not None
        runs = (line.read_text().split()[0] for line in Path(f"/proc/{process.pid}/task").glob("*/schedstat"))
        return sum(map(int, runs)) / 1e9

    def _look_after(self, supervisor: Supervisor) -> None:
        while not self._stopping.wait(POLL_S):
            supervisor.turn(time.monotonic())

    def _scrape(self, url: str) -> None:
        while not self._stopping.wait(SCRAPE_S):
            with urllib.request.urlopen(url, timeout=60) as reply:
                reply.read()


@contextmanager
def both(model: str) -> Iterator[tuple[Observed, Observed]]:
    with ExitStack() as stack:
        server = stack.enter_context(private_redis())
        yield Observed(stack, server.url, SEEN, model), Observed(stack, server.url, UNSEEN, model)


def pairs(model: str, num_requests: int, num_tokens: int, rounds: int) -> list[tuple[Turn, Turn]]:
    """The turns of both in each round; who goes first changes from round to round. The first round warms up."""
    taken = []
    with both(model) as (seen, unseen):
        for index in range(rounds + 1):
            if index % 2:
                turns = seen.answer(num_requests, num_tokens), unseen.answer(num_requests, num_tokens)
            else:
                without = unseen.answer(num_requests, num_tokens)
                turns = seen.answer(num_requests, num_tokens), without
            print(f"{Path(model).name}, round {index}: {turns}", file=sys.stderr)
            taken.append(turns)
    return taken[1:]


def of_the_worker(taken: list[tuple[Turn, Turn]], num_requests: int, num_tokens: int) -> dict[str, Any]:
    """The cost itself, where nothing else is done."""
    added_us = 1e6 * statistics.median(seen.cpu_s - unseen.cpu_s for seen, unseen in taken) / num_requests
    ratios = [seen.cpu_s / unseen.cpu_s for seen, unseen in taken]
    return {
        "requests": num_requests,
        "tokens": num_tokens,
        "us_per_request": [
            round(1e6 * statistics.median(turn.cpu_s for turn in turns) / num_requests, 1)
            for turns in zip(*taken, strict=True)
        ],
        "added_us_per_request": round(added_us, 1),
        "added_us_per_step": round(added_us * WIDTH / num_tokens, 2),
        "processor_time": report.spread(ratios),
    }


def of_the_model(taken: list[tuple[Turn, Turn]], num_requests: int, num_tokens: int) -> dict[str, Any]:
    """What it comes to beside a model."""
    return {
        "requests": num_requests,
        "tokens": num_tokens,
        "tokens_per_s": round(num_requests * num_tokens / statistics.median(seen.wall_s for seen, _ in taken)),
        "throughput": report.spread([unseen.wall_s / seen.wall_s for seen, unseen in taken]),
        "processor_time": report.spread([seen.cpu_s / unseen.cpu_s for seen, unseen in taken]),
    }


@click.command(help=__doc__)
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True)
@click.option("--fake-requests", type=click.IntRange(1), default=1024, show_default=True)
@click.option("--model-requests", type=click.IntRange(1), default=64, show_default=True)
@click.option("--tokens", "num_tokens", type=click.IntRange(1), default=64, show_default=True)
@report.json_option
def main(rounds: int, fake_requests: int, model_requests: int, num_tokens: int, json_path: Path | None) -> None:
    figures: dict[str, Any] = {"width": WIDTH, "rounds": rounds}
    taken = pairs(FAKE, fake_requests, num_tokens, rounds)
    figures["fake_engine"] = of_the_worker(taken, fake_requests, num_tokens)
    with tempfile.TemporaryDirectory() as folder:
        taken = pairs(str(write_model("6m", Path(folder))), model_requests, num_tokens, rounds)
    figures["6m_model"] = of_the_model(taken, model_requests, num_tokens)
    report.publish(figures, json_path)


if __name__ == "__main__":
    main()
