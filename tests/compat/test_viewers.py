"""rq-dashboard and rq-exporter beside a worker of ours: what they show of its jobs."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest
from redis import Redis
from tests.support.fake_engine import FakeWorker, SlowWorker
from tests.support.ports import free_port
from tests.support.processes import RQ, running
from tests.support.queued_jobs import enqueue_plain, status, submit
from tests.support.waiting import DEADLINE_S, wait_until

from mlxq.queue.batch import Batch
from mlxq_worker.config import EngineConfig, WorkerConfig

TOOLS = os.environ["MLXQ_COMPAT"]
"""The folder of their commands."""


@contextmanager
def serving(program: str, *options: str, path: str) -> Iterator[str]:
    """One of the programs; gives the address at which it answers."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    with running(sys.executable, "-c", _ALONE, f"{TOOLS}/{program}", *options, "-p", str(port)):
        wait_until(lambda: _answers(address + path), f"{program} to serve")
        yield address


_ALONE = "import os, sys; os.environ.pop('PYTHONPATH', None); os.execv(sys.argv[1], sys.argv[1:])"
"""Without what we import, which is of other versions."""


def _answers(address: str) -> bool:
    try:
        get(address)
    except HTTPError:
        return True
    except (URLError, ConnectionError):
        return False
    return True


def get(address: str) -> str:
    with urlopen(address, timeout=DEADLINE_S) as reply:
        return str(reply.read().decode())


@pytest.fixture
def batch(connection: Redis) -> Batch:
    """Three jobs that were answered, one that failed, and one of no batch that was answered."""
    batch = submit(connection, "one", "two", "three", "bad")
    enqueue_plain(connection, job_id="plain")
    config = WorkerConfig(model="fake", engine=EngineConfig(max_num_seqs=4))
    FakeWorker(["mlxq"], connection=connection, serializer="json", config=config).work(burst=True)
    return batch


def jobs_of(address: str, registry: str) -> dict[str, Any]:
    jobs = json.loads(get(f"{address}/0/data/jobs/mlxq/{registry}/20/asc/1.json"))["jobs"]
    return {job["id"]: job for job in jobs}


def test_rq_dashboard_shows_our_jobs_and_their_answers(batch: Batch, redis_url: str) -> None:
    with serving("rq-dashboard", "--json", "-b", "127.0.0.1", "-u", redis_url, path="/") as address:
        finished, failed = jobs_of(address, "finished"), jobs_of(address, "failed")
        job = json.loads(get(f"{address}/0/data/job/{batch.job_id('r0')}.json"))

    assert finished.keys() == {*map(batch.job_id, ("r0", "r1", "r2")), "plain"}
    assert failed.keys() == {batch.job_id("r3")}
    assert "bad_prompt" in failed[batch.job_id("r3")]["exc_info"]
    assert job["result"]["custom_id"] == "r0"


def test_rq_dashboard_needs_to_be_told_that_our_jobs_are_json(batch: Batch, redis_url: str) -> None:
    with (
        serving("rq-dashboard", "-b", "127.0.0.1", "-u", redis_url, path="/") as address,
        pytest.raises(HTTPError, match="500"),
    ):
        jobs_of(address, "finished")


def test_rq_dashboard_requeues_our_jobs(batch: Batch, redis_url: str, connection: Redis) -> None:
    failed = batch.job_id("r3")
    with serving("rq-dashboard", "--json", "-b", "127.0.0.1", "-u", redis_url, path="/") as address:
        urlopen(f"{address}/job/{failed}/requeue", data=b"", timeout=DEADLINE_S).close()

    assert status(connection, failed) == "queued"


def test_rq_exporter_counts_our_workers_and_jobs(batch: Batch, redis_url: str, connection: Redis) -> None:
    submit(connection, *("slow" for _ in range(10)), max_tokens=100_000)
    options = ("--host", "127.0.0.1", "--redis-url", redis_url)
    worker = (
        *RQ,
        "worker",
        "-u",
        redis_url,
        "-w",
        f"{SlowWorker.__module__}.SlowWorker",
        "-S",
        "json",
        "-n",
        "bee",
        "mlxq",
    )
    variables = {"MLXQ_MODEL": "fake", "MLXQ_MAX_NUM_SEQS": "4", "MLXQ_CLAIM_AHEAD": "2"}

    with running(*worker, **variables), serving("rq-exporter", *options, path="/metrics") as address:
        wait_until(lambda: number(get(f"{address}/metrics"), 'rq_jobs{queue="mlxq",status="started"}') == 8, "8 rows")
        wait_until(lambda: 'state="busy"' in get(f"{address}/metrics"), "the worker to be busy")
        metrics = get(f"{address}/metrics")

    assert number(metrics, 'rq_jobs{queue="mlxq",status="finished"}') == 4
    assert number(metrics, 'rq_jobs{queue="mlxq",status="failed"}') == 1
    assert number(metrics, 'rq_workers{name="bee",queues="mlxq",state="busy"}') == 1


def number(metrics: str, series: str) -> float | None:
    found = re.search(rf"^{re.escape(series)} (.*)$", metrics, re.MULTILINE)
    return float(found[1]) if found else None
