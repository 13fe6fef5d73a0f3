"""Live requests: jobs that somebody waits for. They are in no batch, go before those that are, and are not kept.

A live job is one of RQ's like any other, but for the list in which it waits (`mlxq.keys`); its answer is its result.
Its text as it grows is a stream beside that, which may miss something: who reads along has to compare with the answer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import msgspec
from redis import Redis
from redis import exceptions as redis_errors
from rq.job import Job, JobStatus, Retry
from rq.queue import Queue
from rq.registry import CanceledJobRegistry, FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.utils import now
from rq.worker_registration import WORKERS_BY_QUEUE_KEY

from mlxq import keys
from mlxq.queue import rq_keys
from mlxq.queue.answers import BUSY_LOOP_GUARD_S, EndedJob, answer_of
from mlxq.queue.broken_keys import Kind, is_wrong_type, mend
from mlxq.queue.connect import queue_errors, replies_to
from mlxq.queue.enqueuing.job_data import MAX_RETRIES
from mlxq.queue.scripts import source
from mlxq.requests.openai import ParsedLine
from mlxq.results.answer import Status

logger = logging.getLogger("mlxq")

_STATUSES: Mapping[bytes, Status] = {b"1": "finished", b"2": "failed", b"3": "cancelled"}
"""By the type of RQ's result."""
_REGISTRIES = (FinishedJobRegistry, FailedJobRegistry, CanceledJobRegistry)
_PIECES = msgspec.json.Decoder(list[tuple[int, str, int, str]])


@dataclass(frozen=True, slots=True)
class Growth:
    """What an answer has grown by, as the execution of its job has told it: indices of choices, ``content`` or
    ``reasoning``, how many characters of that come before, and text."""

    execution: str
    pieces: list[tuple[int, str, int, str]]


@dataclass(frozen=True, slots=True)
class LiveNews:
    """What was read of some jobs: what answers have grown by, how far that is, and the output lines of those that have
    ended."""

    growth: dict[str, list[Growth]]
    positions: dict[str, str]
    lines: dict[str, dict[str, Any]]


class LiveQueue:
    """The live jobs of one queue. Thread-safe.

    Args:
        connection: must not decode responses.
    """

    def __init__(self, connection: Redis, queue: str) -> None:
        self._redis = connection
        self._queue = queue

    def enqueue(self, job_id: str, line: ParsedLine, *, is_streamed: bool, wait_s: float) -> None:
        """Put a request at the end of the line. Nobody answers it any more once it has waited for so long.

        Raises:
            QueueUnavailable: Redis can't be reached, or can't take it now.
        """
        job = Job.create(
            keys.FUNCTION_NAME,
            args=[line.payload],
            connection=self._redis,
            id=job_id,
            origin=self._queue,
            status=JobStatus.QUEUED,
            timeout=-1,
            ttl=int(wait_s) + 1,
            result_ttl=keys.LIVE_TTL_S,
            failure_ttl=keys.LIVE_TTL_S,
            description="mlxq live request",
            meta={"custom_id": line.request.custom_id, "stream": is_streamed},
            retry=Retry(max=MAX_RETRIES),
            serializer=JSONSerializer,
        )
        job.enqueued_at = now()
        with queue_errors(self._redis), self._redis.pipeline() as pipe:
            self._make_room(job)
            pipe.sadd(Queue.redis_queues_keys, rq_keys.queue(self._queue))
            job.save(pipeline=pipe)
            pipe.hset(job.key, "mlxq_live", "1")
            pipe.expire(job.key, int(wait_s) + 1)
            pipe.rpush(keys.live(self._queue), job_id)
            pipe.execute()

    def read(self, positions: Mapping[str, str | None], block_s: float) -> LiveNews:
        """What is new of these jobs; waits up to `block_s` for the first that is.

        Args:
            positions: how far each one's stream has been read, ``0-0`` at first; `None` for those that have none.

        Raises:
            QueueUnavailable: Redis can't be reached.
        """
        wanted = {rq_keys.results(job_id): "0-0" for job_id in positions}
        wanted |= {keys.stream(job_id): at for job_id, at in positions.items() if at is not None}
        began = time.monotonic()
        with queue_errors(self._redis):
            try:
                reply: Any = self._redis.xread(cast(Any, wanted), block=max(1, int(block_s * 1000)))
            except redis_errors.ResponseError as error:
                if not is_wrong_type(error):
                    raise
                reply = self._read_singly(wanted)
        if not reply:  # embedded servers may not wait
            time.sleep(max(0.0, min(block_s - (time.monotonic() - began), BUSY_LOOP_GUARD_S)))
        entries = {key.decode(): found for key, found in cast("list[tuple[bytes, list[Any]]]", reply or [])}
        news = LiveNews({}, {}, {})
        for job_id in positions:
            if told := entries.get(keys.stream(job_id)):
                news.growth[job_id] = [growth for _, fields in told if (growth := _growth(fields)) is not None]
                news.positions[job_id] = told[-1][0].decode()
            if results := entries.get(rq_keys.results(job_id)):
                status = _STATUSES.get(results[-1][1].get(b"type", b""), "failed")
                news.lines[job_id] = dict(answer_of(EndedJob(job_id, status, ""), results[-1:], None).line)
        return news

    def states(self, job_ids: Iterable[str]) -> dict[str, str | None]:
        """RQ's word for how each job stands; `None` for one that isn't there any more."""
        listed = list(job_ids)
        with queue_errors(self._redis), self._redis.pipeline(transaction=False) as pipe:
            for job_id in listed:
                pipe.hget(Job.key_for(job_id), "status")
            replies = replies_to(pipe)
        return {
            job_id: None if status is None else status.decode(errors="replace")
            for job_id, status in zip(listed, replies, strict=True)
        }

    def cancel(self, job_ids: Iterable[str]) -> None:
        """Nobody waits for these any more. Those that run are dropped by their workers within seconds."""
        registries = [registry(self._queue, connection=self._redis).key
                      for registry in (StartedJobRegistry, CanceledJobRegistry)]  # fmt: skip
        with queue_errors(self._redis):
            for job_id in job_ids:
                script_keys = [Job.key_for(job_id), rq_keys.executions(job_id), rq_keys.results(job_id)]
                script_keys += [keys.stream(job_id), *registries, keys.live(self._queue), keys.delayed(self._queue)]
                self._redis.eval(source("cancel_live"), len(script_keys), *script_keys, job_id, time.time())

    def forget(self, job_ids: Iterable[str]) -> None:
        """Delete jobs that have ended, and their answers."""
        registries = [registry(self._queue, connection=self._redis).key for registry in _REGISTRIES]
        with queue_errors(self._redis), self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.unlink(Job.key_for(job_id), rq_keys.results(job_id), keys.stream(job_id))
                for registry in registries:
                    pipe.zrem(registry, job_id)
            replies_to(pipe)

    def models(self) -> list[str]:
        """What the queue's workers answer with; nothing of those that are still loading it.

        Raises:
            QueueUnavailable: Redis can't be reached.
        """
        with queue_errors(self._redis), self._redis.pipeline(transaction=False) as pipe:
            pipe.smembers(WORKERS_BY_QUEUE_KEY % self._queue)
            [workers] = replies_to(pipe)
            for worker in sorted(workers or ()):
                pipe.hget(worker, rq_keys.MODEL)
            names = {name.decode(errors="replace") for name in replies_to(pipe) if name}
        return sorted(names)

    def _make_room(self, job: Job) -> None:
        kinds: dict[str, Kind] = {**rq_keys.kinds_for_producer(self._queue, [job.id]), keys.live(self._queue): "list"}
        for broken in mend(self._redis, kinds):
            logger.warning("%s", broken)

    def _read_singly(self, wanted: Mapping[str, str]) -> list[tuple[bytes, list[Any]]]:
        """Without what strangers have put in the way of some: that counts as gone."""
        with self._redis.pipeline(transaction=False) as pipe:
            for key, at in wanted.items():
                pipe.xread(cast(Any, {key: at}))
            return [entry for reply in replies_to(pipe) for entry in reply or ()]


def _growth(fields: dict[bytes, bytes]) -> Growth | None:
    """`None` where a stranger has written the entry."""
    try:
        pieces = _PIECES.decode(fields.get(b"pieces", b""))
    except ValueError:
        return None
    return Growth(fields.get(b"execution", b"").decode(errors="replace"), pieces)
