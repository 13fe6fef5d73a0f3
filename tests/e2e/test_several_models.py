"""`mlxq worker --models` and `mlxq enqueue --route` as their users see them: two models under load, one at a time."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from http.client import HTTPException
from itertools import count, islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from tests.support.batch_files import demo_examples, request, text_of, write_lines
from tests.support.ports import free_port
from tests.support.processes import MLXQ, run, running
from tests.support.waiting import DEADLINE_S

from mlxq import keys
from mlxq.queue.batch import Batch
from mlxq.queue.client import Client
from mlxq.results.read_back import model_of
from mlxq_worker.demo import MODEL_PATH
from mlxq_worker.supervision.model_policy import Policy

EXAMPLES = demo_examples(32)
FEW = 6
NUM_TURNS = 3
"""So long both models have work: how much that is, is for the machine to say."""
MOST = 50
"""Batches of a few requests: models that take turns need far less."""
POLICY = Policy(max_wait_s=1, min_turn_s=0.5, drain_s=60)
MODELS = f"""
[policy]
max_wait_s = {POLICY.max_wait_s}
min_turn_s = {POLICY.min_turn_s}
drain_s = {POLICY.drain_s}

[models.one]
model = "demo"
max_num_seqs = 1

[models.two]
model = "./other"
max_num_seqs = 1
"""

Sample = tuple[str, frozenset[tuple[str, str]]]
"""A name and its labels."""

pytestmark = pytest.mark.slow


class Children:
    """The processes that a supervisor has started, looked at again and again: how many at a time, and their memory."""

    def __init__(self, pid: int) -> None:
        self._listed = Path(f"/proc/{pid}/task/{pid}/children")
        self.most = 0
        self.seen: set[int] = set()
        self.largest_kb: dict[int, int] = {}
        self.total_kb = 0

    def look(self) -> None:
        try:
            pids = [int(pid) for pid in self._listed.read_text().split()]
        except OSError:
            return
        sizes = {pid: size for pid in pids if (size := _resident_kb(pid))}
        self.most = max(self.most, len(sizes))
        self.seen |= sizes.keys()
        self.total_kb = max(self.total_kb, sum(sizes.values()))
        for pid, size in sizes.items():
            self.largest_kb[pid] = max(size, self.largest_kb.get(pid, 0))


def _resident_kb(pid: int) -> int:
    """0 for one that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")), 0)


class Scrapes:
    """What the supervisor's port has said, one scrape after another: each sample's value, by its name and labels."""

    def __init__(self, address: str) -> None:
        self._url = f"http://{address}/metrics"
        self.all: list[dict[Sample, float]] = []
        self.loaded: list[tuple[str, ...]] = []  # the models that were there, in each of them
        self.counts: set[Sample] = set()

    def scrape(self) -> None:
        try:
            with urlopen(self._url, timeout=DEADLINE_S) as answer:
                families = list(text_string_to_metric_families(answer.read().decode()))
        except (URLError, ConnectionError, HTTPException):  # not there yet, or not any more
            return
        read = {}
        for family in families:
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                read[key] = sample.value
                if family.type != "gauge" and not sample.name.endswith("_created"):
                    self.counts.add(key)
        self.all.append(read)
        self.loaded.append(tuple(model for model, is_up in _by_model(read, "mlxq_worker_up").items() if is_up))

    def of(self, name: str) -> list[dict[str, float]]:
        """A metric by model, in each scrape; with all its labels added up."""
        return [_by_model(read, name) for read in self.all]

    def num_swaps(self) -> int:
        """From one model to the other."""
        turns = [model for each in self.loaded for model in each]
        return sum(before != after for before, after in pairwise(turns))


def _by_model(read: Mapping[Sample, float], name: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for (sample, labels), value in read.items():
        if sample == name:
            model = dict(labels)["model_name"]
            found[model] = found.get(model, 0) + value
    return found


@contextmanager
def watched(pid: int, address: str) -> Iterator[tuple[Children, Scrapes]]:
    children, scrapes, is_over = Children(pid), Scrapes(address), threading.Event()

    def watch() -> None:
        for number in count():
            if is_over.wait(0.02):
                return
            children.look()
            if number % 10 == 0:
                scrapes.scrape()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield children, scrapes
    finally:
        is_over.set()
        thread.join()


def events(log: str, *beginnings: str) -> list[tuple[float, str]]:
    """When the supervisor or a worker said so, in seconds, and what."""
    said = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [
        (datetime.fromisoformat(line["time"]).timestamp(), line["message"])
        for line in said
        if line["message"].startswith(beginnings)
    ]


def enqueue(folder: Path, url: str, *lines: dict[str, Any], options: tuple[str, ...] = ()) -> Any:
    write_lines(folder / "in.jsonl", lines)
    return run(*MLXQ, "enqueue", "-i", "in.jsonl", "--route", "--url", url, *options, cwd=folder)


def asked(custom_id: str, model: str | None) -> dict[str, Any]:
    line = request(custom_id, EXAMPLES[custom_id])
    body = line.get("body", line)
    return {**line, "body": {**body, "model": model}} if "body" in line else {**line, "model": model}


def asked_again(name: str, model: str, number: int) -> dict[str, Any]:
    return asked(name, model) | {"custom_id": f"{name}-again-{number}"}


def keep_busy(connection: Redis, more: list[Batch]) -> None:
    """Ask for more of each model that has little to do."""
    for model in ("one", "two"):
        client = Client(connection, keys.model_queue(model))
        if client.queue_length() < FEW:
            more.append(client.submit([asked_again(name, model, len(more)) for name in islice(EXAMPLES, FEW)]))


def test_two_models_under_load_take_turns_and_nothing_is_lost(
    connection: Redis, redis_url: str, tmp_path: Path
) -> None:
    # given two models, and requests for each
    shutil.copytree(MODEL_PATH, tmp_path / "other")
    (tmp_path / "models.toml").write_text(MODELS)
    connection.zadd(keys.MODELS, {"one": 2e9, "two": 2e9})
    names = list(EXAMPLES)
    model_for = {name: ("one", "two")[index % 2] for index, name in enumerate(names)}
    strange = [asked(names[0], "three") | {"custom_id": "s1"}, asked(names[1], None) | {"custom_id": "s2"}]
    added = enqueue(tmp_path, redis_url, *(asked(name, model_for[name]) for name in names), *strange)
    ids = added.stdout.split()
    more: list[Batch] = []

    # when
    address = f"127.0.0.1:{free_port()}"
    worker = (*MLXQ, "worker", "--models", "models.toml", "--burst", "--log-format", "json", "--metrics-port", address)
    with (
        running(*worker, cwd=tmp_path, MLXQ_URL=redis_url) as supervisor,
        watched(supervisor.pid, address) as (children, scrapes),
    ):
        while supervisor.poll() is None and scrapes.num_swaps() < NUM_TURNS - 1 and len(more) < MOST:
            keep_busy(connection, more)
            time.sleep(0.02)
        log, _ = supervisor.communicate(timeout=DEADLINE_S)

    # then every request has one answer, by the model that it named
    client = Client(connection)
    assert (supervisor.returncode, len(ids)) == (0, 2), log
    answers = {answer.custom_id: answer.line for each in ids for answer in client.batch(each).as_completed()}
    assert {name: model_of(line) for name, line in answers.items()} == model_for
    right = [name for name, line in answers.items() if text_of(line) == EXAMPLES[name].expected_text]
    assert len(right) >= 0.95 * len(names)
    assert [client.batch(each).counts().num_finished for each in ids] == [len(names) / 2] * 2
    assert {batch.counts().num_finished for batch in more} <= {FEW}

    # and they took turns while both had work, one process at a time, none of which took more than one model does
    loads = events(log, "Loading ")
    assert [message.split()[1].rstrip(",") for _, message in loads][:NUM_TURNS] in (
        ["one", "two", "one"],
        ["two", "one", "two"],
    )
    assert children.most == 1
    assert 2 <= len(children.seen) <= len(loads)
    assert children.total_kb == max(children.largest_kb.values())
    assert max(children.largest_kb.values()) < 1.5 * median(children.largest_kb.values())

    # and a scrape showed it all: counts that went on through the swaps, and levels of the model that was loaded alone
    for before, after in pairwise(scrapes.all):
        assert [key for key in scrapes.counts & before.keys() if after.get(key, -1) < before[key]] == []
    assert set(scrapes.loaded) == {(), ("one",), ("two",)}
    for name in ("worker_up", "num_requests_running", "memory_used_bytes", "active_jobs", "max_running_rows"):
        assert max(len(each) for each in scrapes.of(f"mlxq_{name}")) == 1, name
    answered = scrapes.of("mlxq_request_success_total")
    for model, latest in answered[-1].items():
        asked_for = len(names) / 2 + FEW * [batch.queue for batch in more].count(keys.model_queue(model))
        assert 0 < latest <= asked_for
    assert answered[-1].keys() == {"one", "two"}
    assert scrapes.num_swaps() >= 2, "scrapes saw a model come back, with the counts of its first turn"

    # and nobody waited longer than the bound, for swaps as long as these were
    readies = [at for at, _ in events(log, "Worker ") if "model" in _]
    gone = [at for at, _ in events(log, "one is unloaded", "two is unloaded")]
    drains = [at for at, _ in events(log, "Draining ")]
    loading_s = max(ready - at for ready, (at, _) in zip(readies, loads, strict=True))
    draining_s = max(end - begin for begin, end in zip(drains, gone, strict=True))
    waited_s = [float(message.split()[-2]) for _, message in loads]
    looks_s = 60  # a look a second, on a machine that may be very slow
    assert max(waited_s) <= POLICY.longest_wait_s(2, loading_s + draining_s) + looks_s

    # and who asked for what there isn't was told what there is
    assert added.returncode == 1
    assert "request s1: no worker serves the model 'three'; known ones are one, two" in added.stderr
    assert "request s2: the request names no model; known ones are one, two" in added.stderr
    assert connection.zscore(keys.MODELS, "one") < 2e9  # announced since, by Redis's clock
