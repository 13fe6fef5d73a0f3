"""The door to the queue: one Redis and one of its queues, where batches are submitted and found again.

    with Client("redis://localhost:6379") as client:
        batch = client.submit([request(prompt="Say hello", custom_id="a")])
        for answer in batch.as_completed():
            print(answer.custom_id, answer.text)

Knows neither the wire format nor files; what can be done with one batch is in `mlxq.queue.batch`.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, cast

from redis import Redis
from rq.queue import Queue

from mlxq import keys
from mlxq.errors import BatchNotFound, ConfigError, QueueError, QueueUnavailable
from mlxq.queue.answers import RECONCILE_S
from mlxq.queue.batch import POLL_S, Batch
from mlxq.queue.broken_keys import kinds_of_batch, naming
from mlxq.queue.connect import DEFAULT_URL, connect, queue_errors, replies_to, takes_bytes
from mlxq.queue.counts import BatchCounts, num_workers, warn_if_no_worker
from mlxq.queue.enqueuing.window import InflightWindow
from mlxq.requests.openai import ParsedLine
from mlxq.requests.submission import RequestLike, as_requests
from mlxq.results.answer import Answer, Completed

__all__ = ["Answer", "Batch", "BatchCounts", "Client"]

DEFAULT_MAX_INFLIGHT = 1000
_BATCH_ID = re.compile(r"(?!-)[A-Za-z0-9_-]{1,100}")


class Client:
    """A Redis and one of its queues.

    Args:
        redis: a Redis URL, or a connection that doesn't decode responses.
        queue: the RQ queue that new jobs go to.
        reconcile_s: quiet seconds after which whoever waits for answers looks for jobs that were ended or deleted
            outside mlxq, by RQ's own tools for example.

    Raises:
        ConfigError: the URL is none that Redis clients know, the connection decodes responses or is one of
            redis.asyncio, or the queue has no name.
    """

    def __init__(
        self,
        redis: str | Redis = DEFAULT_URL,
        queue: str = keys.DEFAULT_QUEUE,
        *,
        reconcile_s: float = RECONCILE_S,
    ) -> None:
        if not queue:
            raise ConfigError("queue must be the name of an RQ queue, not empty")
        self.redis = connect(redis) if isinstance(redis, str) else takes_bytes(redis)
        self.queue = queue
        self._reconcile_s = reconcile_s

    def submit(
        self,
        lines: Iterable[RequestLike],
        batch_id: str | None = None,
        *,
        sealed: bool = True,
        chat: bool = False,
        max_inflight: int | None = None,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Batch:
        """Enqueue requests as one batch, a chunk at a time; what the batch already has is left as it is.

        Args:
            lines: what `mlxq.request` builds, objects as they would stand on an input line, or the texts of prompts. A
                list is checked before anything is enqueued; any other iterable is read a chunk at a time.
            batch_id: a batch to begin or to complete; a fresh id by default.
            sealed: with `False` the batch stays open for `Batch.add`, and `Batch.as_completed` waits for more.
            chat: make plain text a chat message rather than a bare prompt.
            max_inflight: as for `Batch.add`.
            name: what people call the batch; it need not be unique. `mlxq status` shows it.
            metadata: your own, as plain JSON, in `Batch.counts()`.

        Raises:
            RequestError: a request can't be accepted, or has the id of an earlier one; the message has its number.
            QueueUnavailable: Redis can't be reached; submit the same lines again to complete the batch.
            ConfigError: the batch id can't be used, or `max_inflight` leaves no room for a request.
            QueueError: the batch is cancelled or in another queue.
        """
        batch = self.open(batch_id, name=name, metadata=metadata)
        batch.add(lines, chat=chat, max_inflight=max_inflight)
        if sealed:
            batch.seal()
        return batch

    def run(
        self, lines: Iterable[RequestLike], *, chat: bool = False, max_inflight: int = DEFAULT_MAX_INFLIGHT
    ) -> Completed:
        """Have requests answered: ``for`` or ``async for`` over their answers, in the order in which they end.

        However many there are, so many of them are in Redis at a time at most: they are read as others are answered,
        and an answer is deleted from Redis some time after it was read. Whoever stops reading cancels the rest.

        Args:
            lines, chat: as for `submit`. What is wrong with a request is raised when it is its turn.
            max_inflight: requests that have no answer yet; fewer where they are long, 256 MiB together.

        Raises:
            RequestError: a request can't be accepted, or has the id of an earlier one; the message has its number.
            QueueUnavailable: Redis can't be reached. What was submitted stays there.
            ConfigError: `max_inflight` leaves no room for a request.
        """
        return Completed(self._run(as_requests(lines, chat=chat), InflightWindow(max_inflight)))

    def open(
        self,
        batch_id: str | None = None,
        *,
        prefix: str | None = None,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Batch:
        """A batch to add to, new or not; a fresh id, which begins with `prefix`, is drawn when none is given. Nothing
        is written yet. `name` and `metadata` are as in `submit`; a batch that is there keeps its own.

        Raises:
            ConfigError: the id is not 1 to 100 letters, digits, ``_`` and ``-``, or begins with ``-``, like an option.
                Or the metadata are no plain JSON.
        """
        if batch_id is None:
            batch_id = f"{prefix or 'b'}{int(time.time()):x}{secrets.token_hex(4)}"
        if not _BATCH_ID.fullmatch(batch_id):
            raise ConfigError(
                f"batch id {batch_id!r} must be 1 to 100 letters, digits, '_' or '-', and not begin with '-'"
            )
        return self._batch(batch_id, self.queue, _about(name, metadata))

    def in_queue(self, queue: str) -> Client:
        """A client of another queue in the same Redis, over the same connections."""
        return Client(self.redis, queue, reconcile_s=self._reconcile_s)

    def batch(self, batch_id: str) -> Batch:
        """A batch that exists, whatever queue it is in.

        Raises:
            BatchNotFound: no batch has this id.
        QueueError: what is there is no batch.
        """
        with queue_errors(self.redis), naming(self.redis, kinds_of_batch(batch_id)):
            queue = cast("bytes | None", self.redis.hget(keys.batch(batch_id), "queue"))
        if queue is None:
            raise BatchNotFound(f"there is no batch {batch_id!r} in this Redis")
        try:
            return self._batch(batch_id, queue.decode())
        except UnicodeDecodeError:
            raise QueueError(f"the key {keys.batch(batch_id)} holds something else than a batch: delete it") from None

    def batch_of(self, job_id: str) -> Batch:
        """The batch that a job belongs to.

        Raises:
            BatchNotFound: no batch has this job.
        """
        batch_id = keys.batch_id_of(job_id)
        with queue_errors(self.redis):
            if self.redis.zscore(keys.batch_jobs(batch_id), job_id) is None:
                raise BatchNotFound(f"there is no job {job_id!r} in this Redis")
        return self.batch(batch_id)

    def batch_ids(self) -> list[str]:
        """The ids of all batches that still exist, oldest first. Strikes those that expired off the list."""
        with queue_errors(self.redis), self.redis.pipeline(transaction=False) as pipe:
            batch_ids = [item.decode() for item in cast("list[bytes]", self.redis.zrange(keys.BATCHES, 0, -1))]
            for batch_id in batch_ids:
                pipe.exists(keys.batch(batch_id))
            found = dict(zip(batch_ids, pipe.execute(), strict=True))
            if gone := [batch_id for batch_id in batch_ids if not found[batch_id]]:
                self.redis.zrem(keys.BATCHES, *gone)
        return [batch_id for batch_id in batch_ids if found[batch_id]]

    def queue_length(self) -> int:
        """How many jobs wait in the queue, of any batch; those that wait to be tried again, too."""
        with queue_errors(self.redis), self.redis.pipeline(transaction=False) as pipe:
            pipe.llen(Queue(self.queue, connection=self.redis).key)
            pipe.llen(keys.live(self.queue))
            pipe.zcard(keys.delayed(self.queue))
            return sum(num or 0 for num in replies_to(pipe))

    def num_workers(self) -> int:
        """How many workers are registered on the queue and alive."""
        return num_workers(self.redis, self.queue)

    def close(self) -> None:
        """Give the connections back; ``with Client(...) as client`` does it in the end."""
        self.redis.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, lines: Iterable[ParsedLine], window: InflightWindow) -> Generator[Answer]:
        batch = self.open()
        collector = batch.collector()
        parts = window.parts(lines)
        num_open, has_warned = 0, False
        try:
            part = next(parts, None)
            while part is not None or num_open:
                while part is not None and window.has_room(part, num_open):
                    num_open += batch.add(part)
                    window.added(part)
                    part = next(parts, None)
                answers = list(collector.fetch(collector.poll(POLL_S)))
                if not answers and not has_warned:
                    warn_if_no_worker(self.redis, self.queue)
                    has_warned = True
                yield from answers
                collector.forget(answers)
                num_open -= len(answers)
        except QueueUnavailable:
            raise
        except BaseException:
            with suppress(BatchNotFound):  # nothing of it has got there
                batch.cancel()
            raise
        batch.seal()
        batch.delete()

    def _batch(self, batch_id: str, queue: str, about: Mapping[str, str] | None = None) -> Batch:
        return Batch(self.redis, batch_id, queue, reconcile_s=self._reconcile_s, about=about)


def _about(name: str | None, metadata: Mapping[str, Any] | None) -> dict[str, str]:
    about = {} if name is None else {"name": name}
    if metadata:
        try:
            about["metadata"] = json.dumps(metadata, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"the metadata of a batch must be plain JSON: {error}") from error
    return about
