"""The systems that answer from a process of their own: `mlxq run`'s path, a stock RQ worker, and `mlx_lm.server`.

Each is a context manager that starts its processes with a model and yields a function from a workload to an `Outcome`.
The stock worker and the server are fed as their users would: one job, or one HTTP request, for each prompt.
"""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from redis import Redis
from rq import Queue
from rq.job import Job
from tests.bench import stock_job
from tests.bench.in_process import BenchModel
from tests.bench.outcome import Outcome
from tests.bench.workloads import Item, Workload
from tests.support.ports import free_port
from tests.support.processes import environment

from mlxq.files import bulk
from mlxq.files.input import read_requests
from mlxq.queue.client import Client
from mlxq_worker.blas import LIBRARY
from mlxq_worker.commands.worker_options import worker_command
from mlxq_worker.supervision.redis_server import private_redis

Run = Callable[[Workload], Outcome]
Process = subprocess.Popen[bytes]
START_TIMEOUT_S = 120.0
MAX_TRIES = 100


@contextmanager
def mlxq_run(bench: BenchModel, width: int, max_inflight: int = bulk.DEFAULT_MAX_INFLIGHT) -> Iterator[Run]:
    """A private Redis and a worker that stays; a run is a file of requests in, and a file of answers out."""
    with tempfile.TemporaryDirectory() as folder, private_redis() as redis:
        client = Client(redis.url)
        command = worker_command("mlxq", model=str(bench.path), max_num_seqs=width)
        with process(command, {"MLXQ_URL": redis.url}) as worker:
            yield partial(through_files, client, worker, Path(folder), max_inflight=max_inflight)
        client.close()


@contextmanager
def stock_rq(bench: BenchModel, width: int) -> Iterator[Run]:
    """`rq worker --worker-class rq.worker.SimpleWorker` whose job calls `mlx_lm.generate`: one request at a time."""
    with private_redis() as redis:
        command = [sys.executable, "-m", "rq.cli", "worker", "--worker-class", "rq.worker.SimpleWorker"]
        with process(
            [*command, "--url", redis.url, "--quiet", "bench"], {stock_job.MODEL_VARIABLE: str(bench.path)}
        ) as running:
            yield partial(_through_jobs, bench, Redis.from_url(redis.url), running)


@contextmanager
def mlx_lm_server(bench: BenchModel, width: int) -> Iterator[Run]:
    """`mlx_lm.server` under as many requests at a time as it may decode together."""
    port = free_port()
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(bench.path), "--port", str(port)]
    command += ["--decode-concurrency", str(width), "--prompt-concurrency", str(min(8, width)), "--log-level", "ERROR"]
    with process(command, {}) as running:
        _wait_for_port(port, running)
        yield partial(_through_http, bench, port, width)


SERVICES: dict[str, Callable[[BenchModel, int], AbstractContextManager[Run]]] = {
    "mlxq_run": mlxq_run,
    "stock_rq": stock_rq,
    "mlx_lm_server": mlx_lm_server,
}


def through_files(
    client: Client,
    worker: Process,
    folder: Path,
    workload: Workload,
    *,
    max_inflight: int = bulk.DEFAULT_MAX_INFLIGHT,
) -> Outcome:
    """What `mlxq run` does with a file, for a worker that is there already."""
    source, target = folder / "requests.jsonl", folder / "answers.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in request_lines(workload)))
    start = time.perf_counter()
    summary = bulk.process(
        client,
        read_requests(source),
        target,
        folder / "errors.jsonl",
        on_turn=lambda _: worker.poll() is None,
        max_inflight=max_inflight,
        resume=False,
        ordered=True,
    )
    seconds = time.perf_counter() - start
    if summary.failed or summary.interrupted:
        raise RuntimeError(f"{summary.failed} requests failed, or the worker did")
    return Outcome(tuple(map(_text, target.read_text().splitlines())), workload.num_tokens, seconds)


def request_lines(workload: Workload) -> Iterator[dict[str, Any]]:
    """The workload as batch lines; prompts are token ids, so that all systems see the same ones."""
    for index, item in enumerate(workload.items):
        asked = {"prompt": list(item.prompt), "max_tokens": item.num_tokens, "ignore_eos": True}
        yield {"custom_id": str(index), "body": {**asked, **asdict(item.sampling)}}


def _text(line: str) -> str:
    text: str = json.loads(line)["response"]["body"]["choices"][0]["text"]
    return text


def _through_jobs(bench: BenchModel, connection: Redis, worker: Process, workload: Workload) -> Outcome:
    queue = Queue("bench", connection=connection)
    start = time.perf_counter()
    jobs = [queue.enqueue(stock_job.generate, list(item.prompt), item.num_tokens) for item in workload.items]
    generated = [_result(job, worker) for job in jobs]
    seconds = time.perf_counter() - start
    return Outcome(tuple(map(bench.text, generated)), workload.num_tokens, seconds)


def _result(job: Job, worker: Process) -> list[int]:
    """The worker takes the jobs in order, so waiting for one after another is as fast as for all."""
    while not (result := job.latest_result()):
        if worker.poll() is not None or job.is_failed:
            raise RuntimeError("the stock worker has failed")
        time.sleep(0.005)
    if result.type != result.Type.SUCCESSFUL:
        raise RuntimeError(f"the stock worker's job has failed: {result.exc_string}")
    token_ids: list[int] = result.return_value
    return token_ids


def _through_http(bench: BenchModel, port: int, width: int, workload: Workload) -> Outcome:
    """The server takes text alone, and ends on the model's end token: what it generated is counted, not assumed."""
    prompts = [bench.text(item.prompt) for item in workload.items]
    start = time.perf_counter()
    with ThreadPoolExecutor(width) as pool:
        answers = list(pool.map(partial(_post, port), prompts, workload.items))
    seconds = time.perf_counter() - start
    return Outcome(tuple(text for text, _ in answers), sum(count for _, count in answers), seconds)


def _post(port: int, prompt: str, item: Item) -> tuple[str, int]:
    body = {"prompt": prompt, "max_tokens": item.num_tokens, **asdict(item.sampling)}
    for _ in range(MAX_TRIES):
        try:
            answer = _answer(port, json.dumps(body))
        except ConnectionError:  # the server's line of connections is five long
            time.sleep(0.05)
        else:
            return answer["choices"][0]["text"], answer["usage"]["completion_tokens"]
    raise RuntimeError("mlx_lm.server refuses connections")


def _answer(port: int, body: str) -> Any:
    with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        return json.loads(connection.getresponse().read())


@contextmanager
def process(command: list[str], variables: dict[str, str]) -> Iterator[Process]:
    """Run a command for the block, with OpenBLAS as its BLAS."""
    preload = {"LD_PRELOAD": LIBRARY} if sys.platform == "linux" else {}
    # What they say is a line for each request; a failure shows in their answers.
    running = subprocess.Popen(
        command, env=environment(**preload, **variables), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield running
    finally:
        running.terminate()
        running.wait(30)


def _wait_for_port(port: int, server: Process) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError("mlx_lm.server has ended")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise RuntimeError("mlx_lm.server doesn't answer")
