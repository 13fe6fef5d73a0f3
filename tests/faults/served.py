"""`mlxq serve` under faults: clients of many keys run batches while services and workers are killed at random.

    python -m tests.faults.served --seconds 180 --clients 50 --batches 200 --lines 100

Two services share one Redis and one data directory; a client that finds one dead asks the other. In the end
every batch has every line once, with the right text, and no key sees what is another's. Beside each batch its client
makes a live request, streamed or whole, until it has its answer: the right one, too. Exit code 1 if not.
`tests/e2e/test_serve.py` has a short version.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import openai
from openai import OpenAI
from openai.types import Batch
from tests.support.ports import free_port
from tests.support.processes import MLXQ, environment
from tests.support.served import ENDED, jsonl, lines_of

from mlxq_worker.supervision.redis_server import private_redis

T = TypeVar("T")

NUM_SERVICES = 2
NUM_WORKERS = 2
NUM_KEYS = 10
PAUSE_S = 0.5
"""Between two looks at a batch, and before a client asks again."""
NUMBERS = range(1, 41)
"""What the demo model counts on from without a mistake."""


@dataclass(slots=True)
class Place:
    """A process that comes and goes."""

    command: Sequence[str]
    variables: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, env=environment(**self.variables), stdout=log, stderr=log)

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@dataclass(slots=True)
class Story:
    """What has happened, and what was wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    begun: dict[str, set[str]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def fault(self, what: str) -> None:
        with self.lock:
            self.faults.append(what)


class Customer:
    """One client with a key, who asks another service when one doesn't answer."""

    def __init__(self, urls: Sequence[str], name: str, rng: random.Random, story: Story) -> None:
        self.name = name
        self._rng = rng
        self._story = story
        self._clients = [OpenAI(base_url=f"{url}/v1", api_key=key_of(name), max_retries=0, timeout=30) for url in urls]

    def ask(self, question: Callable[[OpenAI], T]) -> T:
        while True:
            try:
                return question(self._rng.choice(self._clients))
            except (openai.APIConnectionError, openai.InternalServerError, BrokenOff):
                self._story.count("questions asked again")
                time.sleep(PAUSE_S)

    def run_batch(self, number: int, num_lines: int) -> None:
        """From upload to deletion, and a look at every line."""
        asked = {f"{self.name}-{number}-{i}": self._rng.choice(NUMBERS) for i in range(num_lines)}
        content = jsonl(map(line_of, asked, asked.values()))
        file = self.ask(lambda client: client.files.create(file=("in.jsonl", content), purpose="batch"))
        batch = self.ask(
            lambda client: client.batches.create(
                input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
            )
        )
        with self._story.lock:
            self._story.begun.setdefault(self.name, set()).add(batch.id)
        self.run_live(is_streamed=number % 2 == 0)
        while batch.status not in ENDED:
            time.sleep(PAUSE_S)
            batch = self.ask(partial(_retrieved, batch_id=batch.id))
        self._story.count(f"batches {batch.status}")
        lines = self.ask(lambda client: lines_of(client, batch.output_file_id))
        texts = {line["custom_id"]: line["response"]["body"]["choices"][0]["text"] for line in lines}
        if (batch.status, batch.error_file_id) != ("completed", None) or len(lines) != len(texts):
            self._story.fault(
                f"{batch.id}: {batch.status}, {len(lines)} lines, {len(texts)} ids, {batch.request_counts}"
            )
        if texts != {custom_id: text_of(start) for custom_id, start in asked.items()}:
            self._story.fault(f"{batch.id}: lines are missing, wrong, or of others")

    def run_live(self, *, is_streamed: bool) -> None:
        start = self._rng.choice(NUMBERS)
        text = self.ask(partial(_live_answer, start=start, is_streamed=is_streamed))
        self._story.count("live answers")
        if text != text_of(start):
            self._story.fault(f"a live answer of {self.name}, streamed: {is_streamed}, is {text!r}")

    def look_around(self) -> None:
        """All that the key sees is its own."""
        seen = self.ask(lambda client: [batch.id for batch in client.batches.list(limit=100)])
        strangers = set(seen) & set().union(*(ids for name, ids in self._story.begun.items() if name != self.name))
        if strangers or not self._story.begun.get(self.name, set()) <= set(seen):
            self._story.fault(f"{self.name} sees {len(strangers)} batches of others, and {len(seen)} in all")


def _retrieved(client: OpenAI, batch_id: str) -> Batch:
    return client.batches.retrieve(batch_id)


class BrokenOff(Exception):
    """A stream that has come to no end."""


def _live_answer(client: OpenAI, start: int, *, is_streamed: bool) -> str:
    asked: dict[str, Any] = {"model": "mlxq-demo", "prompt": prompt_of(start), "temperature": 0}
    if not is_streamed:
        return str(client.completions.create(**asked).choices[0].text)
    text, is_whole = "", False
    stream = client.completions.create(**asked, stream=True)
    try:
        for chunk in stream:
            text += chunk.choices[0].text
            is_whole |= chunk.choices[0].finish_reason is not None
    except Exception as error:
        raise BrokenOff from error
    if not is_whole:
        raise BrokenOff
    return text


def key_of(name: str) -> str:
    return f"sk-{name}-0123456789abcdef"


def line_of(custom_id: str, start: int) -> dict[str, object]:
    body = {"prompt": prompt_of(start), "temperature": 0}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}


def prompt_of(start: int) -> str:
    return f"Count from {start} to {start + 3}:"


def text_of(start: int) -> str:
    return f" {start} {start + 1} {start + 2} {start + 3}"


@click.command()
@click.option("--seconds", type=float, default=180, show_default=True, help="How long there are kills.")
@click.option("--clients", type=int, default=50, show_default=True)
@click.option("--batches", type=int, default=200, show_default=True)
@click.option("--lines", type=int, default=100, show_default=True, help="Of each batch.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(seconds: float, clients: int, batches: int, lines: int, seed: int) -> None:
    """Run batches through services that are killed, with workers that are, too."""
    rng, story = random.Random(seed), Story()
    names = [f"key{i}" for i in range(NUM_KEYS)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mlxq-served-")))
        url = stack.enter_context(private_redis()).url
        ports = [free_port() for _ in range(NUM_SERVICES)]
        places = [*_services(folder, url, ports, names), *_workers(folder, url)]
        for place in places:
            stack.callback(place.end)
            place.start()
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        customers = [Customer(urls, names[i % NUM_KEYS], random.Random(f"{seed}/{i}"), story) for i in range(clients)]
        with ThreadPoolExecutor(clients) as pool:
            work = [pool.submit(customers[i % clients].run_batch, i, lines) for i in range(batches)]
            _kill_some(places, seconds, rng, story, lambda: all(done.done() for done in work))
            for done in work:
                done.result()
        for customer in customers[:NUM_KEYS]:
            customer.look_around()
    print(", ".join(f"{count} {what}" for what, count in sorted(story.counts.items())))
    for fault in story.faults:
        print(f"FAULT: {fault}")
    sys.exit(1 if story.faults else 0)


def _services(folder: Path, url: str, ports: Sequence[int], names: Sequence[str]) -> list[Place]:
    keys = folder / "keys"
    keys.write_text("".join(f"{name} {key_of(name)}\n" for name in names))
    keys.chmod(0o600)
    options = ("--url", url, "--data", str(folder / "data"), "--api-keys", str(keys), "--batch-lease", "2")
    return [Place((*MLXQ, "serve", *options, "--port", str(port)), {}, folder / f"serve-{port}.log") for port in ports]


def _workers(folder: Path, url: str) -> list[Place]:
    variables = {"MLXQ_URL": url, "MLXQ_LEASE_S": "3"}
    command = (*MLXQ, "worker", "--model", "demo", "--max-num-seqs", "32")
    return [Place(command, variables, folder / f"worker-{i}.log") for i in range(NUM_WORKERS)]


def _kill_some(
    places: Sequence[Place], seconds: float, rng: random.Random, story: Story, is_done: Callable[[], bool]
) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not is_done():
        time.sleep(rng.uniform(1, 5))
        place = rng.choice(places)
        place.end()
        story.count(f"kills of {place.command[len(MLXQ)]}")
        time.sleep(rng.choice([0, 0, 2]))
        place.start()


if __name__ == "__main__":
    main()
