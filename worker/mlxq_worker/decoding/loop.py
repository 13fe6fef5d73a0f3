"""The decode side of a worker: takes messages in, gives rows to the engine, steps it, and hands over what ended.

Runs on the thread that owns the engine. Knows no Redis, no requests and no clock: a turn is told the time (seconds,
monotonic) and never waits; `receive` does, when there is nothing to decode.
"""

from __future__ import annotations

import gc
import logging
import traceback
from collections.abc import Callable, Iterable, Iterator
from queue import Empty

from mlxq.errors import RequestError
from mlxq.logs import fields
from mlxq_worker.decoding.lifecycle import Event, Lifecycle
from mlxq_worker.decoding.memory_watch import MemoryWatch, is_allocation_failure, is_out_of_buffers, no_limit
from mlxq_worker.decoding.width import Width
from mlxq_worker.engine.api import Engine, RowId, RowSpec, StepReport
from mlxq_worker.messages import (
    Admit,
    Cancel,
    Channel,
    Drained,
    Dropped,
    IoFailed,
    Measured,
    Recycle,
    Refused,
    Returned,
    RowEnded,
    Signalled,
    StepRaised,
    StopClaiming,
    StopWorker,
    Streamed,
    ToDecode,
)
from mlxq_worker.metrics.decode_figures import DecodeFigures
from mlxq_worker.step_watch import StepWatch
from mlxq_worker.traces import trace_of

logger = logging.getLogger("rq.worker")


class DecodeLoop:
    """One engine and the rows in it. Which of them run, and which wait, is the engine's business.

    Args:
        new_engine: builds an empty engine; called again after a step that raised.
        max_num_seqs: how many rows the engine runs at once while memory is not short.
        watch: told when a step begins and ends.
        memory: asked before every step.
        max_generated_tokens: enough for one process.
        grace_s: how long rows in the engine may go on once the worker is told to stop.
        figures: what is recorded; the I/O thread hears of it. `None`: nobody watches.
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
        figures: DecodeFigures | None = None,
    ) -> None:
        self._new_engine = new_engine
        self._channel = channel
        self._watch = watch
        self._memory = memory or no_limit()
        self._width = Width(max_num_seqs)
        self._tokens_left = float("inf") if max_generated_tokens is None else max_generated_tokens
        self._engine = new_engine()
        self._rows: set[RowId] = set()  # in the engine, waiting or running
        self._num_running = 0  # after the last step
        self._grace_s = grace_s
        self._figures = figures
        self.lifecycle = Lifecycle()

    def __repr__(self) -> str:
        return f"DecodeLoop(running={self._num_running} waiting={len(self._rows) - self._num_running})"

    @property
    def is_idle(self) -> bool:
        """Whether no row is in the engine."""
        return not self._rows

    def is_over(self, now: float) -> bool:
        """Whether the worker is at its end. Grace that was given since the last look starts at `now`."""
        self.lifecycle = self.lifecycle.at(now, self._grace_s)
        return self.lifecycle.is_over(now, num_rows=len(self._rows))

    def receive(self, wait_s: float) -> None:
        """Take in all messages; waits up to `wait_s` for the first one if there is nothing else to do.

        Raises:
            BaseException: what ended the I/O thread; without it nothing that is decoded could be written.
        """
        has_nothing_to_do = self.is_idle and self.lifecycle.phase.admits
        for message in self._messages(wait_s if has_nothing_to_do else 0.0):
            self._handle(message)

    def turn(self, now: float) -> None:
        """One iteration: the engine makes a step. `now` is when that is: read after any wait."""
        self._look_at_memory(now)
        if not self.lifecycle.phase.admits:
            self._return_waiting()
        if self._rows:
            self._engine.limit_rows(self._width.rows if self._width.is_shrunk else None)
            self._step(now)
        if self._figures is not None and self._figures.is_due(now):
            self._tell(self._figures)

    def close(self) -> None:
        """Drop all rows. The I/O side gives their jobs back when it closes."""
        if self._figures is not None:
            self._tell(self._figures)
        self._engine.close()
        self._rows.clear()

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
                self._admit(specs)
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

    def _admit(self, specs: Iterable[RowSpec]) -> None:
        for spec in specs:
            try:
                self._engine.admit(spec)
            except RequestError as error:
                self._rows.discard(spec.row_id)
                self._channel.to_io.put(Refused(spec.row_id, error))
            else:
                self._rows.add(spec.row_id)

    def _cancel(self, row_ids: tuple[RowId, ...]) -> None:
        if dropped := self._withdraw(row_ids):
            self._channel.to_io.put(Dropped(dropped))
        for row_id in self._rows.intersection(row_ids):
            self._engine.cancel(row_id)

    def _return_waiting(self) -> None:
        if returned := self._withdraw():
            self._channel.to_io.put(Returned(returned))

    def _withdraw(self, row_ids: tuple[RowId, ...] | None = None) -> tuple[RowId, ...]:
        """Take out of the engine what hasn't started, of these rows or of all."""
        withdrawn = tuple(spec.row_id for spec in self._engine.withdraw(row_ids))
        self._rows.difference_update(withdrawn)
        return withdrawn

    def _look_at_memory(self, now: float) -> None:
        self._width.grow(now)
        level = self._memory.level(now)
        if level == "far over":
            self._on(Event.EVACUATE, f"much more memory is in use than there may be, {self._memory!r}")
        elif level == "over" and 0 < self._num_running <= self._width.rows:  # else the last time has yet to show
            self._width.shrink(self._num_running, now)
            logger.warning("More memory is in use than there may be, %r: %r", self._memory, self._width)

    def _step(self, now: float) -> None:
        self._watch.begin(now)
        if self._figures is not None:
            self._figures.begin(now)
        try:
            report = self._engine.step(now)
        except Exception as error:  # noqa: BLE001  whatever it was, the batch can't be used any more
            waiting = self._engine.withdraw()
            in_batch = self._rows.difference(spec.row_id for spec in waiting)
            if not in_batch:  # it raised before any of them had started, so any may be at fault; it must not go on so
                waiting, in_batch = (), set(self._rows)
            if self._figures is not None:
                self._figures.raised()
            self._give_up_batch(in_batch, error, now)
        else:
            self._hand_over(report)
            self._watch.end(has_advanced=report.has_advanced or not self._rows)
            return
        # Not while the error is at hand: its traceback keeps the arrays of the step that raised.
        self._start_over(waiting)
        self._watch.end(has_advanced=True)

    def _hand_over(self, report: StepReport) -> None:
        self._num_running = report.num_running
        if self._figures is not None:
            self._figures.end(report)
        if report.pieces:
            self._channel.to_io.put(Streamed(report.pieces))
        for result in report.finished:
            self._rows.discard(result.row_id)
            self._channel.to_io.put(RowEnded(result))
        self._tokens_left -= report.rows_useful
        if self._tokens_left <= 0:
            self._on(Event.RECYCLE, "it has generated as many tokens as it was to")

    def _tell(self, figures: DecodeFigures) -> None:
        snapshot = figures.snapshot(
            is_idle=self.is_idle,
            kv_usage=self._engine.kv_usage(),
            width=self._width.rows,
            memory_bytes=self._memory.last_bytes,
            memory_limit_bytes=self._memory.limit_bytes,
        )
        self._channel.to_io.put(Measured(snapshot))

    def _give_up_batch(self, in_batch: set[RowId], error: Exception, now: float) -> None:
        """Say what becomes of the rows in it. Memory that ran out is nobody's fault while there are several jobs; one
        that is alone needs more than there is. A process that ran out of buffers is no use to anybody."""
        rows = tuple(in_batch)
        self._rows.difference_update(rows)
        logger.error(
            "A step of %d rows raised; starting over with an empty batch: %s",
            len(rows),
            trace_of(error),
            extra=fields(num_rows=len(rows), error=type(error).__name__),
        )
        if is_out_of_buffers(error):
            self._channel.to_io.put(Returned(rows))
            self._on(Event.RECYCLE, "Metal has no more buffers for this process, which a fresh one has")
        elif not is_allocation_failure(error):
            self._channel.to_io.put(StepRaised(rows, "".join(traceback.format_exception(error))))
        elif len({row_id.request_id for row_id in rows}) > 1:
            self._width.shrink(len(rows), now)
            logger.warning("Memory ran out: going on with no more than %d rows", self._width.rows)
            self._channel.to_io.put(Returned(rows))
        else:
            self._width.restore()
            for row_id in rows:
                self._channel.to_io.put(Refused(row_id, _out_of_memory(error, len(rows))))

    def _start_over(self, waiting: Iterable[RowSpec]) -> None:
        self._engine.close()
        gc.collect()
        self._num_running = 0
        if self.lifecycle.phase.admits:
            self._engine = self._new_engine()
            self._admit(waiting)
        elif returned := tuple(spec.row_id for spec in waiting):
            self._rows.difference_update(returned)
            self._channel.to_io.put(Returned(returned))


def _out_of_memory(error: Exception, num_rows: int) -> RequestError:
    """Rows of one request are not decoded a few at a time: whoever asks can send it again with another `n`."""
    fewer = "fewer tokens" if num_rows == 1 else f"fewer tokens, or for fewer than {num_rows} answers at once (n)"
    return RequestError(
        f"there is not enough memory for this request, even with no other beside it ({error}); ask for {fewer}",
        param="max_tokens",
        code="out_of_memory",
    )
