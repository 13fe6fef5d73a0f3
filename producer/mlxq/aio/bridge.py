"""Runs code that was written for redis in a thread, over a connection of redis.asyncio that lives in an event loop.

Each call has a thread while it lasts; whenever it wants something of Redis, a coroutine does that in the loop, and the
thread waits for it. So the loop is never blocked, not even while requests are parsed, and a task that is cancelled ends
what its call waits for: there the call raises, as it would for any other interruption, and its ``finally`` blocks run
to their end before the task goes on. Knows nothing of what is called.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterable, Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

T = TypeVar("T")

_MAX_THREADS = 10_000
"""As good as none: a call that had to wait for a thread could wait for one that waits for it."""

_this_thread = threading.local()


class Threads:
    """Where calls run. A thread is started where none is idle."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="mlxq")
        self._is_closed = False

    async def run(self, work: Callable[[], T]) -> T:
        """Run a function in a thread and return what it returns.

        Raises:
            CancelledError: the task was cancelled; the function has come to its end nevertheless, unless the task was
                cancelled once more meanwhile.
            RuntimeError: it is closed.
        """
        if self._is_closed:
            raise RuntimeError("this AsyncClient is closed: open another")
        call = _Call(asyncio.get_running_loop())
        future = asyncio.get_running_loop().run_in_executor(self._pool, call.run, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            call.cancel()
            await asyncio.wait([future])
            if not future.cancelled():
                future.exception()  # whatever it was, it has been seen
            raise

    def close(self) -> None:
        """Take no more calls; idle threads end."""
        self._is_closed = True
        self._pool.shutdown(wait=False)


class _Call:
    """A function that runs in a thread, and the task that it waits for. The loop calls all but `run` and `wait_for`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._task: asyncio.Task[Any] | None = None
        self._is_cancelled = False
        self._has_been_told = False

    def run(self, work: Callable[[], T]) -> T:
        _this_thread.call = self
        try:
            return work()
        finally:
            del _this_thread.call

    def wait_for(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Have the loop run a coroutine, and wait for its end.

        Raises:
            CancelledError: the task was cancelled; said once, so that what cleans up may still wait for something.
        """
        outcome: Future[T] = Future()
        self._loop.call_soon_threadsafe(self._start, coroutine, outcome)
        return outcome.result()

    def cancel(self) -> None:
        """End what it waits for: now, or the next time if that has just come to its end."""
        self._is_cancelled = True
        if self._task is not None:
            self._task.cancel()

    def _start(self, coroutine: Coroutine[Any, Any, T], outcome: Future[T]) -> None:
        if self._is_cancelled and not self._has_been_told:
            self._has_been_told = True
            coroutine.close()
            outcome.set_exception(asyncio.CancelledError())
            return
        self._task = self._loop.create_task(coroutine)
        self._task.add_done_callback(partial(self._ended, outcome))

    def _ended(self, outcome: Future[T], task: asyncio.Task[T]) -> None:
        self._task = None
        if task.cancelled():
            self._has_been_told = True
            outcome.set_exception(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(task.result())


def as_blocking(connection: AsyncRedis) -> Redis:
    """The connection as code for redis takes it, inside of `Threads.run`."""
    return cast(Redis, _Blocking(connection))


def each_of(items: AsyncIterable[T]) -> Iterator[T]:
    """The items of an asynchronous iterable, inside of `Threads.run`."""
    iterator = aiter(items)
    end = object()
    while (item := _wait_for(_next(iterator, end))) is not end:
        yield cast(T, item)


async def _next(iterator: Any, end: object) -> object:
    return await anext(iterator, end)


class _Blocking:
    """A client or a pipeline of redis.asyncio whose methods return what is awaited there."""

    def __init__(self, theirs: Any) -> None:
        self._theirs = theirs

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._theirs, name)
        return partial(self._call, value) if inspect.ismethod(value) or inspect.isfunction(value) else value

    def __len__(self) -> int:
        return len(self._theirs)

    def __bool__(self) -> bool:
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _wait_for(self._theirs.__aexit__(kind, error, traceback))

    def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        if result is self._theirs:  # a pipeline has noted a command
            return self
        if inspect.iscoroutine(result):
            return _wait_for(result)
        return _Blocking(result) if isinstance(result, AsyncRedis) else result


def _wait_for(coroutine: Coroutine[Any, Any, T]) -> T:
    call: _Call | None = getattr(_this_thread, "call", None)
    if call is None:
        coroutine.close()
        raise RuntimeError("only what runs in a thread of an AsyncClient may use its connection")
    return call.wait_for(coroutine)
