"""What the tests of the worker share: jobs in a queue, and what became of them."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

from redis import Redis
from rq.job import Job
from rq.queue import Queue

from mlxq import keys
from mlxq.queue.batch import Batch
from mlxq.queue.client import Client
from mlxq.requests.openai import text_request


def submit(connection: Redis, *prompts: str, **body: Any) -> Batch:
    """A batch of completions; `r0`, `r1`, ... are their custom ids."""
    lines = [text_request(prompt, custom_id=f"r{i}", defaults=body) for i, prompt in enumerate(prompts)]
    return Client(connection).submit(lines)


def queue_of(connection: Redis) -> Queue:
    return Queue(keys.DEFAULT_QUEUE, connection=connection, serializer="json")


def enqueue_plain(connection: Redis, prompt: str = "hello", **options: Any) -> Job:
    """A job by RQ's own means: no batch, RQ's defaults."""
    line = {"custom_id": "plain", "url": "/v1/completions", "body": {"prompt": prompt}}
    return queue_of(connection).enqueue(keys.FUNCTION_NAME, line, **options)


def fetch(connection: Redis, job_id: str) -> Job:
    return Job.fetch(job_id, connection=connection, serializer="json")


def status(connection: Redis, job_id: str) -> str:
    return str(fetch(connection, job_id).get_status().value)


def answer(connection: Redis, job_id: str) -> dict[str, Any]:
    """The output line, whatever the result's type."""
    result = fetch(connection, job_id).latest_result()
    assert result is not None
    return cast("dict[str, Any]", result.return_value)


def events(connection: Redis, batch: Batch) -> Counter[str]:
    """How often each job of the batch has ended, as ``job:status``."""
    entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", connection.xrange(keys.batch_events(batch.id)))
    return Counter(f"{fields[b'job'].decode()}:{fields[b'status'].decode()}" for _, fields in entries)


def num_strikes(connection: Redis) -> int:
    """Of all jobs together."""
    return sum(int(connection.hget(key, "mlxq_strikes") or 0) for key in connection.scan_iter("rq:job:*", _type="hash"))
