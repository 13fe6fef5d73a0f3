"""Live requests beside a bulk batch: how long they wait, counted in steps, and what they cost the bulk batch.

    python -m tests.bench.live

One `mlxq serve`, one worker and one private Redis; the worker's scheduler, rows and queue are the real ones, and its
model repeats prompts, so that steps can be counted. The bulk batch is answered twice, once alone and once with live
requests that all come at once while it runs, every other one of them streamed. By the policy a live request that a
worker has claimed enters the batch before all bulk rows that ran then have ended, and the bulk batch takes no more
steps longer than the live tokens fill. The last line is JSON; exits with 1 if a bound doesn't hold.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
from openai import AsyncOpenAI
from redis import Redis
from tests.bench import report
from tests.support.echo_engine import EchoEngine, EchoWorker
from tests.support.served import service

from mlxq import keys
from mlxq.queue.client import Client
from mlxq.requests.openai import text_request
from mlxq_worker.config import EngineConfig, WorkerConfig
from mlxq_worker.engine.api import most_live_rows
from mlxq_worker.supervision.redis_server import private_redis

BULK_TOKENS = (4, 20)
"""Of an answer, at least and at most, its end token included."""
LIVE_TOKENS = (10, 40)
STEP_S = 0.002
SLACK = 0.15
"""Of the steps that the live tokens would fill: the batch isn't full while requests are on their way."""


@click.command(help=__doc__)
@click.option("--bulk", type=click.IntRange(1), default=20_000, show_default=True, help="Requests of the batch.")
@click.option("--live", type=click.IntRange(1), default=200, show_default=True, help="Live requests, all at once.")
@click.option("--width", type=click.IntRange(2), default=32, show_default=True, help="Rows of the worker.")
@report.json_option
def main(bulk: int, live: int, width: int, json_path: Path | None) -> None:
    figures = measure(bulk, live, width)
    report.publish(figures, json_path)
    if not (figures["waits_within_bound"] and figures["costs_within_bound"] and figures["all_right"]):
        sys.exit(1)


@dataclass(frozen=True, slots=True)
class Run:
    """One way through the bulk batch."""

    num_steps: int
    num_live_tokens: int
    waited_steps: list[int]
    seconds: list[float]
    wrong: int


def measure(bulk: int, live: int, width: int) -> dict[str, object]:
    alone, beside = one_run(bulk, 0, width), one_run(bulk, live, width)
    bound = BULK_TOKENS[1] + 1
    explained = beside.num_live_tokens / width
    added = beside.num_steps - alone.num_steps
    waits, seconds = sorted(beside.waited_steps), sorted(beside.seconds)
    return {
        "bulk": bulk,
        "live": live,
        "width": width,
        "live_share": most_live_rows(width),
        "steps_alone": alone.num_steps,
        "steps_beside": beside.num_steps,
        "steps_live_tokens_fill": round(explained),
        "steps_waited_median": waits[len(waits) // 2],
        "steps_waited_most": waits[-1],
        "steps_bound": bound,
        "seconds_median": round(seconds[len(seconds) // 2], 3),
        "seconds_most": round(seconds[-1], 3),
        "waits_within_bound": waits[-1] <= bound,
        "costs_within_bound": added <= explained + SLACK * alone.num_steps,
        "all_right": alone.wrong + beside.wrong == 0,
    }


def one_run(bulk: int, live: int, width: int) -> Run:
    with tempfile.TemporaryDirectory() as folder, private_redis() as redis, Client(redis.url) as client:
        rng = random.Random(18)
        lines = [text_request("b" * (rng.randint(*BULK_TOKENS) - 1), custom_id=str(i)) for i in range(bulk)]
        batch = client.submit(lines)
        with working(redis.url, width) as worker, service(redis.url, Path(folder)) as url:
            while (engine := worker.engine) is None or engine.num_steps < 100:
                time.sleep(0.01)
            answers = asyncio.run(ask_all(url, live)) if live else []
            counts = batch.wait()
        return Run(
            num_steps=engine.num_steps,
            num_live_tokens=sum(live_tokens(index) for index in range(live)),
            waited_steps=waits_of(engine),
            seconds=[seconds for _, seconds in answers],
            wrong=sum(not right for right, _ in answers) + bulk - counts.num_finished,
        )


def waits_of(engine: EchoEngine) -> list[int]:
    """Of live rows: the steps from their coming to the engine until they entered the batch."""
    return [engine.entered[row_id] - engine.came[row_id] for row_id in engine.live]


def live_tokens(index: int) -> int:
    return random.Random(index).randint(*LIVE_TOKENS)


async def ask_all(url: str, number: int) -> list[tuple[bool, float]]:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=300) as client:
        return await asyncio.gather(*(ask(client, index) for index in range(number)))


async def ask(client: AsyncOpenAI, index: int) -> tuple[bool, float]:
    """Whether the answer was right, and after how many seconds it was there."""
    prompt, began = "l" * (live_tokens(index) - 1), time.monotonic()
    if index % 2:
        stream = await client.completions.create(model="echo", prompt=prompt, stream=True)
        text = "".join([chunk.choices[0].text async for chunk in stream])
    else:
        text = (await client.completions.create(model="echo", prompt=prompt)).choices[0].text
    return text == prompt, time.monotonic() - began


@contextmanager
def working(redis_url: str, width: int) -> Iterator[EchoWorker]:
    config = WorkerConfig(model="echo", engine=EngineConfig(max_num_seqs=width))
    with Redis.from_url(redis_url) as connection:
        worker = EchoWorker([keys.DEFAULT_QUEUE], name="echo", connection=connection, serializer="json", config=config)
        worker.step_s = STEP_S
        thread = threading.Thread(target=worker.work)
        thread.start()
        try:
            yield worker
        finally:
            for _ in range(2):
                worker.request_stop(15, None)
            thread.join()


if __name__ == "__main__":
    main()
