"""`Client` and `Batch` for an event loop: the same methods, awaited, over redis.asyncio.

    async with AsyncClient("redis://localhost:6379") as client:
        batch = await client.submit([request(prompt="Say hello", custom_id="a")])
        async for answer in batch.as_completed():
            print(answer.custom_id, answer.text)

What each of them does, returns and raises stands in `mlxq.queue`, which does it.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from functools import partial
from threading import Lock
from types import TracebackType
from typing import Any, Self

from redis.asyncio import Redis

from mlxq import keys
from mlxq.aio.bridge import Threads, as_blocking, each_of
from mlxq.errors import ConfigError
from mlxq.queue.answers import RECONCILE_S
from mlxq.queue.batch import Batch
from mlxq.queue.client import DEFAULT_MAX_INFLIGHT, Client
from mlxq.queue.connect import DEFAULT_URL, connect_async
from mlxq.queue.counts import BatchCounts
from mlxq.requests.submission import RequestLike
from mlxq.results.answer import Answer, Completed

Lines = Iterable[RequestLike] | AsyncIterable[RequestLike]
"""Requests; what is iterated without ``async for`` is iterated in a thread."""


class AsyncClient:
    """A Redis and one of its queues, for the event loop in which it is first used.

    A task that is cancelled while it waits leaves nothing half done: what it waited for ends, and so does what was
    begun for it. Requests that it had submitted stay in the queue.

    Args:
        redis: a Redis URL, or a connection of redis.asyncio that doesn't decode responses.
        queue: the RQ queue that new jobs go to.
        reconcile_s: as in `Client`.

    Raises:
        ConfigError: the URL is none that Redis clients know, the connection decodes responses or is none of
            redis.asyncio, or the queue has no name.
    """

    def __init__(
        self,
        redis: str | Redis = DEFAULT_URL,
        queue: str = keys.DEFAULT_QUEUE,
        *,
        reconcile_s: float = RECONCILE_S,
    ) -> None:
        if not isinstance(redis, str | Redis):
            raise ConfigError(f"redis must be a URL or a connection of redis.asyncio, not {type(redis).__name__}")
        self.redis = connect_async(redis) if isinstance(redis, str) else redis
        self.queue = queue
        self._client = Client(as_blocking(self.redis), queue, reconcile_s=reconcile_s)
        self._threads = Threads()

    async def submit(
        self,
        lines: Lines,
        batch_id: str | None = None,
        *,
        sealed: bool = True,
        chat: bool = False,
        max_inflight: int | None = None,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> AsyncBatch:
        """See `Client.submit`."""
        batch = self.open(batch_id, name=name, metadata=metadata)
        await batch.add(lines, chat=chat, max_inflight=max_inflight)
        if sealed:
            await batch.seal()
        return batch

    def run(
        self, lines: Lines, *, chat: bool = False, max_inflight: int = DEFAULT_MAX_INFLIGHT
    ) -> AsyncIterator[Answer]:
        """See `Client.run`."""
        return _each(self._threads, lambda: self._client.run(_lines(lines), chat=chat, max_inflight=max_inflight))

    def open(
        self,
        batch_id: str | None = None,
        *,
        prefix: str | None = None,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> AsyncBatch:
        """See `Client.open`; nothing is awaited, as nothing is written yet."""
        return AsyncBatch(self._client.open(batch_id, prefix=prefix, name=name, metadata=metadata), self._threads)

    async def batch(self, batch_id: str) -> AsyncBatch:
        """See `Client.batch`."""
        return AsyncBatch(await self._threads.run(partial(self._client.batch, batch_id)), self._threads)

    async def batch_of(self, job_id: str) -> AsyncBatch:
        """See `Client.batch_of`."""
        return AsyncBatch(await self._threads.run(partial(self._client.batch_of, job_id)), self._threads)

    async def batch_ids(self) -> list[str]:
        """See `Client.batch_ids`."""
        return await self._threads.run(self._client.batch_ids)

    async def queue_length(self) -> int:
        """See `Client.queue_length`."""
        return await self._threads.run(self._client.queue_length)

    async def num_workers(self) -> int:
        """See `Client.num_workers`."""
        return await self._threads.run(self._client.num_workers)

    async def aclose(self) -> None:
        """Give the connections back; ``async with AsyncClient(...) as client`` does it in the end."""
        self._threads.close()
        await self.redis.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


class AsyncBatch:
    """One batch. `AsyncClient.submit`, `open` and `batch` build it."""

    def __init__(self, batch: Batch, threads: Threads) -> None:
        self._batch = batch
        self._threads = threads

    def __repr__(self) -> str:
        return f"Async{self._batch!r}"

    @property
    def id(self) -> str:
        return self._batch.id

    @property
    def queue(self) -> str:
        return self._batch.queue

    def job_id(self, custom_id: str) -> str:
        """See `Batch.job_id`."""
        return self._batch.job_id(custom_id)

    async def add(self, lines: Lines, *, chat: bool = False, max_inflight: int | None = None) -> int:
        """See `Batch.add`."""
        add = self._batch.add
        return await self._threads.run(lambda: add(_lines(lines), chat=chat, max_inflight=max_inflight))

    async def seal(self) -> None:
        """See `Batch.seal`."""
        await self._threads.run(self._batch.seal)

    async def counts(self) -> BatchCounts:
        """See `Batch.counts`."""
        return await self._threads.run(self._batch.counts)

    async def rate(self) -> float:
        """See `Batch.rate`."""
        return await self._threads.run(self._batch.rate)

    async def answer(self, custom_id: str | int) -> Answer | None:
        """See `Batch.answer`."""
        return await self._threads.run(partial(self._batch.answer, custom_id))

    async def answers(self, custom_ids: Iterable[str | int]) -> dict[str, Answer]:
        """See `Batch.answers`."""
        return await self._threads.run(partial(self._batch.answers, custom_ids))

    def as_completed(self, timeout_s: float | None = None, *, forget: bool = False) -> AsyncIterator[Answer]:
        """See `Batch.as_completed`."""
        return _each(self._threads, lambda: self._batch.as_completed(timeout_s, forget=forget))

    def __aiter__(self) -> AsyncIterator[Answer]:
        return self.as_completed()

    async def wait(self, timeout_s: float | None = None) -> BatchCounts:
        """See `Batch.wait`."""
        return await self._threads.run(partial(self._batch.wait, timeout_s))

    async def cancel(self) -> int:
        """See `Batch.cancel`."""
        return await self._threads.run(self._batch.cancel)

    async def cancel_job(self, job_id: str) -> bool:
        """See `Batch.cancel_job`."""
        return await self._threads.run(partial(self._batch.cancel_job, job_id))

    async def delete(self) -> None:
        """See `Batch.delete`."""
        await self._threads.run(self._batch.delete)


def _lines(lines: Lines) -> Iterable[RequestLike]:
    return each_of(lines) if isinstance(lines, AsyncIterable) else lines


async def _each(threads: Threads, begin: Callable[[], Completed]) -> AsyncIterator[Answer]:
    """The answers of an iterator, each waited for in a thread. It is closed there, too: closing may need Redis, and has
    to wait where a task that was cancelled twice has left a thread that is still reading."""
    answers = await threads.run(begin)
    turn = Lock()

    def read() -> Answer | None:
        with turn:
            return next(answers, None)

    def close() -> None:
        with turn:
            answers.close()

    try:
        while (answer := await threads.run(read)) is not None:
            yield answer
    finally:
        await threads.run(close)
