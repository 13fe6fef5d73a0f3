"""A worker for tests that needs no model: takes jobs off the queue and ends them the way `mlxq.keys` says."""

from __future__ import annotations

import threading
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import msgspec
from rq.exceptions import NoSuchJobError
from rq.job import Job
from tests.support.redis_at import redis_at

from mlxq import keys
from mlxq.contract import Choice, EosEntry, Failure, Request, Result, RunInfo, StopDetails, Usage
from mlxq.requests.openai import parse_object
from mlxq.results.read_back import is_cancelled, is_success
from mlxq.results.result_lines import failure_line, result_line

EOS = EosEntry(id=2, token="<end>")


def echo(request: Request, job_id: str) -> dict[str, Any]:
    """Answers with the prompt, and ends with the EOS token."""
    stop = StopDetails(type="eos_token", token_id=EOS.id, token=EOS.token, token_index=2)
    text = str(request.prompt or (request.messages or ({},))[-1].get("content"))
    result = Result(
        custom_id=request.custom_id,
        request_id=job_id,
        endpoint=request.endpoint,
        model="echo",
        created=0,
        choices=(Choice(index=0, text=text, finish_reason="stop", stop_reason=None, stop_details=stop),),
        usage=Usage(prompt_tokens=5, completion_tokens=3),
        run=RunInfo(eos=(EOS,), seed=1, content_hash=request.content_hash, queue_s=0, prefill_s=0, decode_s=0),
    )
    return result_line(result)


def refuse(request: Request, job_id: str) -> dict[str, Any]:
    """Fails every request as too long."""
    failure = Failure(
        custom_id=request.custom_id, request_id=job_id, code="prompt_too_long", message="too long", status_code=400
    )
    return failure_line(failure)


class FakeWorker:
    """A thread that answers with `answer` while the `with` block runs."""

    def __init__(
        self, url: str, answer: Callable[[Request, str], dict[str, Any]] = echo, *, queue: str = keys.DEFAULT_QUEUE
    ) -> None:
        self.custom_ids: list[str] = []
        self._redis = redis_at(url)
        self._answer = answer
        self._queue = queue
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        self._thread.join()
        self._redis.close()

    def stop(self) -> None:
        """Take no further job."""
        self._stopping.set()

    def _work(self) -> None:
        while not self._stopping.is_set():
            job_id = self._redis.lpop(keys.live(self._queue)) or self._redis.lpop(f"rq:queue:{self._queue}")
            if isinstance(job_id, bytes):
                with suppress(NoSuchJobError):  # it was cancelled and deleted this moment
                    self._run(Job.fetch(job_id.decode(), self._redis, "json"))
            else:
                self._stopping.wait(0.005)

    def _run(self, job: Job) -> None:
        request = parse_object(job.args[0], default_custom_id="missing").request
        self.custom_ids.append(request.custom_id)
        line = self._answer(request, job.id)
        status = "cancelled" if is_cancelled(line) else "finished" if is_success(line) else "failed"
        value = b64encode(msgspec.json.encode(line)).decode()
        batch = job.meta.get("batch")
        with self._redis.pipeline() as pipe:
            pipe.hset(job.key, "status", "canceled" if status == "cancelled" else status)
            pipe.xadd(f"rq:results:{job.id}", {"type": 1, "worker_name": "fake", "return_value": value})
            if batch is not None:
                pipe.xadd(keys.batch_events(batch), {"job": job.id, "status": status})
                pipe.hincrby(keys.batch(batch), "cancelled_jobs" if status == "cancelled" else status, 1)
            pipe.execute()
