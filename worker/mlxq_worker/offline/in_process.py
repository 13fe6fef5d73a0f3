"""Runs requests through a model on the caller's thread: prepared a few at a time, decoded in one batch, each answered
as its last row ends.

What can go wrong with one request costs that request: it ends as a `Failure`. A step that raises takes its batch along;
whoever was in it is tried again, alone, so that only the one at fault fails. Knows no jobs and nothing of vLLM.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from queue import Empty

from mlxq.contract import Failure, Request, Result
from mlxq.errors import RequestError
from mlxq.results.result_lines import rejection
from mlxq_worker.backend import Backend
from mlxq_worker.config import WorkerConfig
from mlxq_worker.decoding.loop import DecodeLoop
from mlxq_worker.engine.api import RowId, RowResult
from mlxq_worker.messages import (
    Admit,
    Cancel,
    Channel,
    Preparer,
    Refused,
    Returned,
    RowEnded,
    StepRaised,
    ToIo,
)
from mlxq_worker.prepared import PreparedRequest
from mlxq_worker.step_watch import StepWatch
from mlxq_worker.traces import trace_of

logger = logging.getLogger("mlxq")


@dataclass(slots=True, eq=False)
class _Open:
    """A request that has no answer yet. `is_suspect`: it was in a step that raised, and runs alone from now on."""

    request_id: str
    request: Request
    queued_at: float
    is_suspect: bool = False


@dataclass(slots=True, eq=False)
class _Try:
    """A request in the engine. Its rows have an id of their own for each try, so that what is late about an earlier one
    meets nobody."""

    row_name: str
    open: _Open
    prepared: PreparedRequest
    results: dict[RowId, RowResult] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        return sum(spec.num_rows for spec in self.prepared.specs)


class InProcess:
    """One loaded model. Belongs to the thread that has loaded it.

    Args:
        preparer: makes rows of requests, and answers of rows.
    """

    def __init__(self, backend: Backend, preparer: Preparer, config: WorkerConfig) -> None:
        self._backend = backend
        self._preparer = preparer
        self._config = config
        self._channel = Channel.open()
        self._loop: DecodeLoop | None = None
        self._num_requests = 0
        self._num_tries = 0
        self._waiting: deque[_Open] = deque()
        self._running: dict[str, _Try] = {}
        self._num_rows = 0

    def __repr__(self) -> str:
        return f"InProcess({len(self._running)} running, {len(self._waiting)} waiting)"

    def run(self, requests: Iterable[Request]) -> Iterator[Result | Failure]:
        """The answers to requests, in the order in which they end, told apart by their custom ids. Requests are read as
        they are needed. Whoever stops iterating, or is interrupted, drops the rest.
        """
        unread = iter(requests)
        loop = self._loop = self._loop or self._new_loop()
        try:
            while True:
                if loop.lifecycle.phase.admits:
                    yield from self._prepare_some(unread)
                    if not self._running:
                        break
                elif loop.is_over(time.monotonic()):
                    yield from self._give_up(loop.lifecycle.reason, unread)
                    return
                yield from self._turn(loop)
            while not loop.is_idle:  # rows of requests that have failed already
                list(self._turn(loop))
        except BaseException:
            self.close()  # a step that was interrupted leaves a batch that can't be used
            raise

    def close(self) -> None:
        """Drop all rows and free what the batch holds. Another `run` begins anew."""
        self._waiting.clear()
        self._running.clear()
        self._num_rows = 0
        if self._loop is not None:
            self._loop.close()
        self._loop = None
        self._channel = Channel.open()

    def _new_loop(self) -> DecodeLoop:
        return DecodeLoop(
            self._backend.new_engine,
            self._channel,
            self._backend.max_num_seqs,
            StepWatch(float("inf")),  # nobody looks at it: whoever waits for a step that hangs can interrupt it
            memory=self._backend.memory,
            grace_s=self._config.grace_s,
        )

    # --- In -------------------------------------------------------------------------------------------------------

    def _prepare_some(self, unread: Iterator[Request]) -> Iterator[Failure]:
        """Hand over as many requests as the engine is to choose among, no more than one batch of them at a time: a
        step waits meanwhile."""
        most = self._backend.max_num_seqs
        while self._num_rows < self._backend.max_num_seqs * self._config.claim_ahead and most > 0:
            request = self._next(unread)
            if request is None:
                return
            try:
                self._start(request)
            except RequestError as error:
                yield self._rejected(request, error)
            except Exception as error:  # noqa: BLE001 - whatever it is, it costs this request only
                yield self._broken(request, "the request can't be prepared", error)
            else:
                most -= 1

    def _next(self, unread: Iterator[Request]) -> _Open | None:
        """What was given back goes first, suspects come last, each when nothing else runs; nobody joins one."""
        if self._suspect is not None:
            return None
        if self._waiting and not self._waiting[0].is_suspect:
            return self._waiting.popleft()
        if (request := next(unread, None)) is not None:
            self._num_requests += 1
            return _Open(str(self._num_requests - 1), request, time.time())
        return self._waiting.popleft() if self._waiting and not self._running else None

    @property
    def _suspect(self) -> _Open | None:
        """The one that runs alone, if one does."""
        if len(self._running) != 1:
            return None
        [running] = self._running.values()
        return running.open if running.open.is_suspect else None

    def _start(self, request: _Open) -> None:
        row_name = str(self._num_tries)
        specs = self._preparer.prepare(request.request, row_name)
        self._num_tries += 1
        started = _Try(row_name, request, PreparedRequest(self._preparer, request.request, specs))
        self._running[row_name] = started
        self._num_rows += started.num_rows
        self._channel.to_decode.put(Admit(specs))

    # --- Out ------------------------------------------------------------------------------------------------------

    def _turn(self, loop: DecodeLoop) -> Iterator[Result | Failure]:
        loop.receive(0.0)
        loop.turn(time.monotonic())
        for message in self._messages():
            yield from self._heard(message)

    def _messages(self) -> Iterator[ToIo]:
        try:
            while True:
                yield self._channel.to_io.get_nowait()
        except Empty:
            return

    def _heard(self, message: ToIo) -> Iterator[Result | Failure]:
        match message:
            case RowEnded(result):
                yield from self._row_ended(result)
            case Refused(row_id, error):
                for ended in self._end([row_id]):
                    yield self._rejected(ended.open, error)
            case StepRaised(row_ids, error):
                yield from self._step_raised(row_ids, error)
            case Returned(row_ids):
                self._waiting.extendleft(ended.open for ended in reversed(self._end(row_ids)))
            case _:  # about claiming, about figures, or that rows which we have cancelled are gone
                pass

    def _row_ended(self, result: RowResult) -> Iterator[Result | Failure]:
        running = self._running.get(result.row_id.request_id)
        if running is None:
            return
        running.results[result.row_id] = result
        if len(running.results) == len(running.prepared.answer_ids):
            self._end([result.row_id])
            yield self._answer(running)

    def _answer(self, ended: _Try) -> Result | Failure:
        request, prepared = ended.open, ended.prepared
        results = tuple(ended.results[row_id] for row_id in prepared.answer_ids)
        if (death := prepared.error_of_all(results)) is not None:
            return self._failed(request, death.code, death.message)
        try:
            return prepared.answer(results, request_id=request.request_id, queued_at=request.queued_at, now=time.time())
        except Exception as error:  # noqa: BLE001 - whatever it is, it costs this request only
            return self._broken(request, "the answer can't be built", error)

    def _step_raised(self, row_ids: Iterable[RowId], error: str) -> Iterator[Failure]:
        for ended in self._end(row_ids):
            request = ended.open
            if request.is_suspect:
                last_words = error.strip().splitlines()[-1]
                yield self._failed(request, "engine_error", f"a step of the engine raised: {last_words}")
            else:
                request.is_suspect = True
                self._waiting.append(request)

    def _end(self, row_ids: Iterable[RowId]) -> list[_Try]:
        """The requests of these rows, which are none of ours any more: what is left of them in the engine goes."""
        names = dict.fromkeys(row_id.request_id for row_id in row_ids)
        ended = [self._running.pop(name) for name in names if name in self._running]
        for each in ended:
            self._num_rows -= each.num_rows
            if left := tuple(row_id for row_id in each.prepared.answer_ids if row_id not in each.results):
                self._channel.to_decode.put(Cancel(left))
        return ended

    def _give_up(self, reason: str, unread: Iterator[Request]) -> Iterator[Failure]:
        """Memory is so short that the loop has come to its end: what has no answer yet gets none."""
        left = [each.open for each in self._running.values()] + list(self._waiting)
        self.close()
        for request in left:
            yield self._failed(request, "out_of_memory", reason)
        for each in unread:
            yield self._failed(_Open(str(self._num_requests), each, 0.0), "out_of_memory", reason)
            self._num_requests += 1

    def _rejected(self, request: _Open, error: RequestError) -> Failure:
        return rejection(error, custom_id=request.request.custom_id, request_id=request.request_id)

    def _broken(self, request: _Open, what: str, error: Exception) -> Failure:
        logger.error("Request %s: %s: %s", request.request_id, what, trace_of(error))
        return self._failed(request, "internal_error", f"{what}: {error}")

    def _failed(self, request: _Open, code: str, message: str) -> Failure:
        return Failure(custom_id=request.request.custom_id, request_id=request.request_id, code=code, message=message)
