"""The decode side of a worker: takes messages in, admits rows, steps the engine, and hands over what ended.

Runs on the thread that owns the engine. Knows no Redis, no requests and no clock: a turn is told the time (seconds,
monotonic) and never waits; `receive` does, when there is nothing to decode.
"""

from __future__ import annotations

import gc
import logging
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from queue import Empty

from mlxq.errors import RequestError
from mlxq_worker.decoding.lifecycle import Event, Lifecycle
from mlxq_worker.decoding.memory_watch import MemoryWatch, is_allocation_failure, no_limit
from mlxq_worker.decoding.width import Width
from mlxq_worker.engine.api import Engine, RowId, RowSpec, StepReport
from mlxq_worker.messages import (
    Admit,
    Cancel,
    Channel,
    Drained,
    Dropped,
    IoFailed,
    Recycle,
    Refused,
    Returned,
    RowEnded,
    Signalled,
    StepRaised,
    StopClaiming,
    StopWorker,
    ToDecode,
)
from mlxq_worker.step_watch import StepWatch
from mlxq_worker.traces import trace_of

logger = logging.getLogger("rq.worker")


class DecodeLoop:
    """One engine and the rows on their way into it.

    Args:
        new_engine: builds an empty engine; called again after a step that raised.
        max_num_seqs: rows admitted before the engine has said how many it has room for.
        watch: told when a step begins and ends.
        memory: asked before rows are admitted.
        max_generated_tokens: enough for one process.
        grace_s: how long rows in the engine may go on once the worker is told to stop.
    """

    def __init__(
        self,
        new_engine: Callable[[], Engine],
        channel: Channel,
        max_num_seqs: int,
        watch: StepWatch,
        *,
        memory: MemoryWatch | None = None,
        max_generated_tokens: int | None = None,
        grace_s: float = 30.0,
    ) -> None:
        self._new_engine = new_engine
        self._channel = channel
        self._max_num_seqs = max_num_seqs
        self._watch = watch
        self._memory = memory or no_limit()
        self._width = Width(max_num_seqs)
        self._tokens_left = float("inf") if max_generated_tokens is None else max_generated_tokens
        self._engine = new_engine()
        self._waiting: deque[tuple[RowSpec, ...]] = deque()
        self._running: set[RowId] = set()
        self._free_rows = max_num_seqs
        self._grace_s = grace_s
        self.lifecycle = Lifecycle()

    def __repr__(self) -> str:
        return f"DecodeLoop(running={len(self._running)} waiting={len(self._waiting)})"

    @property
    def is_idle(self) -> bool:
        """Whether no row is in the engine."""
        return not self._running

    def is_over(self, now: float) -> bool:
        """Whether the worker is at its end. Grace that was given since the last look starts at `now`."""
        self.lifecycle = self.lifecycle.at(now, self._grace_s)
        return self.lifecycle.is_over(now, num_running=len(self._running), num_waiting=len(self._waiting))

    def receive(self, wait_s: float) -> None:
        """Take in all messages; waits up to `wait_s` for the first one if there is nothing else to do.

        Raises:
            BaseException: what ended the I/O thread; without it nothing that is decoded could be written.
        """
        has_nothing_to_do = self.is_idle and not self._waiting and self.lifecycle.phase.admits
        for message in self._messages(wait_s if has_nothing_to_do else 0.0):
            self._handle(message)

    def turn(self, now: float) -> None:
        """One iteration: rows enter the engine, and it makes a step. `now` is when that is: read after any wait."""
        self._look_at_memory(now)
        if not self.lifecycle.phase.admits:
            self._return_waiting()
        self._admit()
        if self._running:
            self._step(now)

    def close(self) -> None:
        """Drop all rows. The I/O side gives their jobs back when it closes."""
        self._engine.close()
        self._running.clear()
        self._waiting.clear()

    def _messages(self, wait_s: float) -> Iterator[ToDecode]:
        try:
            yield self._channel.to_decode.get(block=wait_s > 0, timeout=wait_s or None)
            while True:
                yield self._channel.to_decode.get_nowait()
        except Empty:
            return

    def _handle(self, message: ToDecode) -> None:
        match message:
            case Admit(specs):
                self._waiting.append(specs)
            case Cancel(row_ids):
                self._cancel(row_ids)
            case StopWorker(reason):
                self._on(Event.STOP, reason)
            case Signalled():
                self._on(Event.SIGNAL, "got a signal; another one gives all jobs back at once")
            case Recycle(reason):
                self._on(Event.RECYCLE, reason)
            case Drained():
                self._on(Event.DRAIN, "nothing is left to do")
            case IoFailed(error):
                raise error

    def _on(self, event: Event, reason: str) -> None:
        before, self.lifecycle = self.lifecycle.phase, self.lifecycle.after(event, reason)
        if before.admits and not self.lifecycle.phase.admits:
            logger.info("Stopping: %s", reason)
            self._channel.to_io.put(StopClaiming())

    def _cancel(self, row_ids: tuple[RowId, ...]) -> None:
        for specs in self._waiting:
            if specs[0].row_id in row_ids:
                self._waiting.remove(specs)
                self._channel.to_io.put(Dropped(row_ids))
                return
        for row_id in self._running.intersection(row_ids):
            self._engine.cancel(row_id)

    def _return_waiting(self) -> None:
        if self._waiting:
            self._channel.to_io.put(Returned(tuple(spec.row_id for specs in self._waiting for spec in specs)))
            self._waiting.clear()

    def _look_at_memory(self, now: float) -> None:
        self._width.grow(now)
        level = self._memory.level(now)
        if level == "far over":
            self._on(Event.EVACUATE, f"much more memory is in use than there may be, {self._memory!r}")
        elif level == "over" and 0 < len(self._running) <= self._width.rows:  # else the last time has yet to show
            self._width.shrink(len(self._running), now)
            logger.warning("More memory is in use than there may be, %r: %r", self._memory, self._width)

    def _admit(self) -> None:
        """The rows of one job enter together, also where they are more than there is room for: the engine's own waiting
        line takes the rest, and so they share the prefill, and none waits here for room that never comes. A row whose
        last token is on its way has left its place already: who takes it over enters at the very next step."""
        room = self._free_rows
        if self._width.is_shrunk:  # memory is short: nobody enters before another has left
            room = min(room, self._width.rows - len(self._running))
        room = max(room, 0 if self._running else 1)  # an idle engine always has room for one
        while self._waiting and room > 0:
            room -= sum(self._admit_row(spec) for spec in self._waiting.popleft())

    def _admit_row(self, spec: RowSpec) -> int:
        """Returns how many rows of the batch it takes."""
        try:
            self._engine.admit(spec)
        except RequestError as error:
            self._channel.to_io.put(Refused(spec.row_id, error))
            return 0
        self._running.add(spec.row_id)
        return spec.num_rows

    def _step(self, now: float) -> None:
        self._watch.begin(now)
        try:
            report = self._engine.step(now)
        except Exception as error:  # noqa: BLE001  whatever it was, the batch can't be used any more
            self._give_up_batch(error, now)
        else:
            self._hand_over(report)
            self._watch.end(has_advanced=report.has_advanced or not self._running)
            return
        # Not while the error is at hand: its traceback keeps the arrays of the step that raised.
        self._start_over()
        self._watch.end(has_advanced=True)

    def _hand_over(self, report: StepReport) -> None:
        self._free_rows = report.free_rows
        for result in report.finished:
            self._running.discard(result.row_id)
            self._channel.to_io.put(RowEnded(result))
        self._tokens_left -= report.rows_useful
        if self._tokens_left <= 0:
            self._on(Event.RECYCLE, "it has generated as many tokens as it was to")

    def _give_up_batch(self, error: Exception, now: float) -> None:
        """Say what becomes of the rows in it. Memory that ran out is nobody's fault while there are several jobs; one
        that is alone needs more than there is."""
        rows = tuple(self._running)
        self._running.clear()
        logger.error("A step of %d rows raised; starting over with an empty batch: %s", len(rows), trace_of(error))
        if not is_allocation_failure(error):
            self._channel.to_io.put(StepRaised(rows, "".join(traceback.format_exception(error))))
        elif len({row_id.request_id for row_id in rows}) > 1:
            self._width.shrink(len(rows), now)
            logger.warning("Memory ran out: going on with no more than %d rows", self._width.rows)
            self._channel.to_io.put(Returned(rows))
        else:
            self._width.restore()
            for row_id in rows:
                self._channel.to_io.put(Refused(row_id, _out_of_memory(error, len(rows))))

    def _start_over(self) -> None:
        self._engine.close()
        gc.collect()
        self._engine = self._new_engine()
        self._free_rows = self._max_num_seqs


def _out_of_memory(error: Exception, num_rows: int) -> RequestError:
    """Rows of one request are not decoded a few at a time: whoever asks can send it again with another `n`."""
    fewer = "fewer tokens" if num_rows == 1 else f"fewer tokens, or for fewer than {num_rows} answers at once (n)"
    return RequestError(
        f"there is not enough memory for this request, even with no other beside it ({error}); ask for {fewer}",
        param="max_tokens",
        code="out_of_memory",
    )
