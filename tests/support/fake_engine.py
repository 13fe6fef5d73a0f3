"""An engine, a preparer and workers without MLX: a row yields one token per step, its prompt says how it ends.

A prompt is words. ``boom`` makes the step raise that decodes it, ``die`` ends the process at once, ``hang`` never comes
back, ``slow`` makes each step take a moment longer, ``refuse`` is refused by the engine, ``bad`` by the preparer.
``nan`` ends a row in an error; ``misfit`` and ``twisted`` do to a request's second row what ``refuse`` and ``nan`` do
to every row. The first row of ``uneven`` is one token long. ``rows=3`` asks for three answers.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from threading import Event

from tests.support.waiting import DEADLINE_S, FOREVER_S

from mlxq.contract import FINISH_REASONS, Choice, Request, Result, RunInfo, StopDetails, StopType, Usage
from mlxq.errors import RequestError
from mlxq_worker.backend import Backend
from mlxq_worker.config import WorkerConfig
from mlxq_worker.engine.api import AbortReason, RowId, RowPiece, RowResult, RowSpec, StepReport, Streaming
from mlxq_worker.worker import BatchWorker

DEFAULT_MAX_TOKENS = 3
WIDTH = 32
"""Of a worker that isn't told one."""
EOS_ID = 7


def _set_event() -> Event:
    event = Event()
    event.set()
    return event


@dataclass
class FakeRow:
    spec: RowSpec
    words: tuple[str, ...]
    num_tokens: int = 0
    has_started: bool = False
    stop: StopType | None = None

    def next_stop(self) -> StopType | None:
        """Why the row ends on its newest token, if it does."""
        row_id = self.spec.row_id
        if "nan" in self.words or ("twisted" in self.words and row_id.index == 1):
            return "error"
        is_cut_short = "uneven" in self.words and row_id.index == 0
        return "max_tokens" if is_cut_short or self.num_tokens >= self.spec.max_tokens else None


@dataclass
class FakeEngine:
    """Obeys the protocol; rows run in the order in which they came. `widths` has the number of rows of every step and
    `times` the time that it was told. `num_running` may be read by another thread.

    A test may clear `may_step`: then no row gets any further until it is set again, and a full batch takes in no more.
    """

    max_num_seqs: int = 4
    step_s: float = 0.0
    max_running: int | None = None
    rows: dict[RowId, FakeRow] = field(default_factory=dict)
    widths: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    num_running: int = 0
    is_closed: bool = False
    may_step: Event = field(default_factory=_set_event)

    def admit(self, spec: RowSpec) -> None:
        words = tuple("".join(map(chr, spec.prompt_ids)).split())
        if "refuse" in words or ("misfit" in words and spec.row_id.index == 1):
            raise RequestError("the prompt never fits", param="prompt", code="kv_budget_exceeded")
        self.rows[spec.row_id] = FakeRow(spec, words)

    def step(self, now: float) -> StepReport:
        assert not self.is_closed
        self._start_rows()
        running = self.running
        self.num_running = len(running)
        if self.num_running >= self.max_num_seqs:
            self.may_step.wait(DEADLINE_S)
        elif not self.may_step.is_set():
            time.sleep(0.001)
            return self._report((), num_computed=0)
        self.widths.append(self.num_running)
        self.times.append(now)
        self.compute(running)
        for row in running:
            row.num_tokens += row.stop is None
            if row.stop is None:
                row.stop = row.next_stop()
        finished = tuple(self._result(row) for row in self.rows.values() if row.stop is not None)
        for result in finished:
            del self.rows[result.row_id]
        self.num_running = len(self.running)
        pieces = tuple(
            RowPiece(row_id=row.spec.row_id, part="content", start=row.num_tokens - 1, text="x")
            for row in running
            if row.spec.streaming is not None and row.stop is None
        )
        return self._report(finished, num_computed=len(running), pieces=pieces)

    @property
    def running(self) -> list[FakeRow]:
        return [row for row in self.rows.values() if row.has_started]

    def compute(self, running: list[FakeRow]) -> None:
        """What takes time in a step, and may go wrong."""
        time.sleep(self.step_s + 0.02 * any("slow" in row.words for row in running))
        if any("boom" in row.words for row in running):
            raise RuntimeError("boom goes the batch")
        if any("die" in row.words for row in running):
            os.kill(os.getpid(), signal.SIGKILL)
        if any("hang" in row.words for row in running):
            time.sleep(FOREVER_S)

    def cancel(self, row_id: RowId, reason: AbortReason = "cancelled") -> None:
        if row_id in self.rows:
            self.rows[row_id].stop = reason

    def withdraw(self, row_ids: Collection[RowId] | None = None) -> tuple[RowSpec, ...]:
        started = {row.spec.row_id.request_id for row in self.running}
        withdrawn = [
            row_id
            for row_id in self.rows
            if row_id.request_id not in started and (row_ids is None or row_id in row_ids)
        ]
        return tuple(self.rows.pop(row_id).spec for row_id in withdrawn)

    def limit_rows(self, max_running: int | None) -> None:
        self.max_running = max_running

    def kv_usage(self) -> float:
        return self.num_running / self.max_num_seqs

    def _report(
        self, finished: tuple[RowResult, ...], *, num_computed: int, pieces: tuple[RowPiece, ...] = ()
    ) -> StepReport:
        return StepReport(
            finished=finished,
            num_running=self.num_running,
            num_waiting=len(self.rows) - self.num_running,
            rows_computed=num_computed,
            rows_useful=num_computed,
            pieces=pieces,
        )

    def _start_rows(self) -> None:
        width = self.max_num_seqs if self.max_running is None else min(self.max_num_seqs, self.max_running)
        waiting = [row for row in self.rows.values() if not row.has_started]
        for row in waiting[: max(0, width - len(self.running))]:
            row.has_started = True

    def close(self) -> None:
        self.rows.clear()
        self.num_running = 0
        self.is_closed = True

    def _result(self, row: FakeRow) -> RowResult:
        assert row.stop is not None
        return RowResult(
            row_id=row.spec.row_id,
            token_ids=(1,) * row.num_tokens,
            text="x" * row.num_tokens,
            stop_details=StopDetails(type=row.stop, token_index=row.num_tokens - 1 if row.num_tokens else None),
            num_prompt_tokens=len(row.spec.prompt_ids),
            seed=row.spec.seed,
            prefill_s=0.0,
            decode_s=0.0,
            error_code="nan_logits" if row.stop == "error" else None,
        )


@dataclass
class HeldEngine(FakeEngine):
    """None of its rows gets any further until `may_go` says so."""

    may_go: Callable[[], object] = lambda: True

    def step(self, now: float) -> StepReport:
        if not self.may_go():
            time.sleep(0.005)
            return self._report((), num_computed=0)
        return super().step(now)


class FakePreparer:
    """One token per character."""

    def prepare(self, request: Request, request_id: str) -> tuple[RowSpec, ...]:
        prompt = request.messages[-1]["content"] if request.messages else request.prompt
        assert isinstance(prompt, str)
        if "bad" in prompt.split():
            raise RequestError("this prompt is bad", param="prompt", code="bad_prompt")
        spec = RowSpec(
            row_id=RowId(request_id),
            prompt_ids=tuple(map(ord, prompt)),
            max_tokens=request.sampling.max_tokens or DEFAULT_MAX_TOKENS,
            context_length=1_000_000,
            end_tokens={EOS_ID: "</s>"},
            eos_ids=frozenset({EOS_ID}),
            seed=request.sampling.seed or 0,
            timeout_s=request.sampling.timeout_s,
        )
        num_rows = max(int(word.removeprefix("rows=")) for word in ["rows=1", *prompt.split()] if word[:5] == "rows=")
        return tuple(
            replace(spec, row_id=spec.row_id.answer(index), seed=spec.seed + index) for index in range(num_rows)
        )

    def streaming(self, request: Request, specs: tuple[RowSpec, ...]) -> tuple[RowSpec, ...]:
        return tuple(replace(spec, streaming=Streaming()) for spec in specs)

    def finish(
        self,
        request: Request,
        specs: tuple[RowSpec, ...],
        results: tuple[RowResult, ...],
        *,
        request_id: str,
        created: int,
        queue_s: float,
    ) -> Result:
        choices = tuple(
            Choice(
                index=index,
                text=result.text,
                finish_reason=FINISH_REASONS[result.stop_details.type],
                stop_reason=None,
                stop_details=result.stop_details,
                seed=result.seed,
            )
            for index, result in enumerate(results)
        )
        run = RunInfo(eos=(), seed=0, content_hash=request.content_hash, queue_s=queue_s, prefill_s=0.0, decode_s=0.0)
        return Result(
            custom_id=request.custom_id,
            request_id=request_id,
            endpoint=request.endpoint,
            model="fake",
            created=created,
            choices=choices,
            usage=Usage(
                prompt_tokens=len(specs[0].prompt_ids),
                completion_tokens=sum(len(result.token_ids) for result in results),
            ),
            run=run,
        )


def width_of(config: WorkerConfig) -> int:
    """How many rows a model that is played runs at once."""
    return config.engine.max_num_seqs or WIDTH


class FakeWorker(BatchWorker):
    """`BatchWorker` with everything real but the model: for ``rq worker -w tests.support.fake_engine.FakeWorker``."""

    step_s = 0.001
    birth_pause_s = 0.01

    def load_backend(self, config: WorkerConfig) -> Backend:
        width = width_of(config)
        return Backend(FakePreparer(), lambda: FakeEngine(width, self.step_s), width, "model fake", model_name="fake")


class LoadingWorker(FakeWorker):
    """Never has its model, and says in Redis that it tries to load it."""

    def load_backend(self, config: WorkerConfig) -> Backend:
        self.connection.set("loading", self.name)
        time.sleep(FOREVER_S)
        raise AssertionError("nobody waits that long")


class HeldWorker(FakeWorker):
    """Decodes nothing until somebody writes `go` to Redis."""

    def load_backend(self, config: WorkerConfig) -> Backend:
        width = width_of(config)

        def new_engine() -> FakeEngine:
            return HeldEngine(width, self.step_s, may_go=lambda: self.connection.exists("go"))

        return Backend(FakePreparer(), new_engine, width, "model fake", model_name="fake")


class SlowWorker(FakeWorker):
    """Leaves time to look at it, or to kill it, while it works."""

    step_s = 0.02
