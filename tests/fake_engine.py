"""An engine, a preparer and workers without MLX: a row yields one token per step, its prompt says how it ends.

A prompt is words. ``boom`` makes the step raise that decodes it, ``die`` ends the process at once, ``hang`` never comes
back, ``slow`` makes each step take a moment longer, ``refuse`` is refused by the engine, ``bad`` by the preparer.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field

from mlxq.contract import FINISH_REASONS, Choice, Request, Result, RunInfo, StopDetails, StopType, Usage
from mlxq.errors import RequestError
from mlxq_worker.backend import Backend
from mlxq_worker.config import WorkerConfig
from mlxq_worker.engine.api import AbortReason
from mlxq_worker.engine.row import RowResult, RowSpec, StepReport
from mlxq_worker.worker import BatchWorker

DEFAULT_MAX_TOKENS = 3
EOS_ID = 7


@dataclass
class FakeRow:
    spec: RowSpec
    words: tuple[str, ...]
    num_tokens: int = 0
    stop: StopType | None = None


@dataclass
class FakeEngine:
    """Obeys the protocol. `widths` has the number of rows of every step and `times` the time that it was told."""

    max_num_seqs: int = 4
    step_s: float = 0.0
    rows: dict[str, FakeRow] = field(default_factory=dict)
    widths: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    is_closed: bool = False

    def admit(self, spec: RowSpec) -> None:
        words = tuple("".join(map(chr, spec.prompt_ids)).split())
        if "refuse" in words:
            raise RequestError("the prompt never fits", param="prompt", code="kv_budget_exceeded")
        self.rows[spec.row_id] = FakeRow(spec, words)

    def step(self, now: float) -> StepReport:
        assert not self.is_closed
        running = list(self.rows.values())[: self.max_num_seqs]
        self.widths.append(len(running))
        self.times.append(now)
        time.sleep(self.step_s + 0.02 * any("slow" in row.words for row in running))
        if any("boom" in row.words for row in running):
            raise RuntimeError("boom goes the batch")
        if any("die" in row.words for row in running):
            os.kill(os.getpid(), signal.SIGKILL)
        if any("hang" in row.words for row in running):
            time.sleep(3600)
        for row in running:
            row.num_tokens += row.stop is None
            if row.stop is None and row.num_tokens >= row.spec.max_tokens:
                row.stop = "max_tokens"
        finished = tuple(self._result(row) for row in running if row.stop is not None)
        for result in finished:
            del self.rows[result.row_id]
        left = len(self.rows)
        return StepReport(
            finished=finished,
            num_running=min(left, self.max_num_seqs),
            num_waiting=max(0, left - self.max_num_seqs),
            free_rows=max(0, self.max_num_seqs - left),
            rows_computed=len(running),
            rows_useful=len(running),
        )

    def cancel(self, row_id: str, reason: AbortReason = "cancelled") -> None:
        if row_id in self.rows:
            self.rows[row_id].stop = reason

    def close(self) -> None:
        self.rows.clear()
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
        )


class FakePreparer:
    """One token per character."""

    def prepare(self, request: Request, row_id: str) -> RowSpec:
        prompt = request.prompt
        assert isinstance(prompt, str)
        if "bad" in prompt.split():
            raise RequestError("this prompt is bad", param="prompt", code="bad_prompt")
        return RowSpec(
            row_id=row_id,
            prompt_ids=tuple(map(ord, prompt)),
            max_tokens=request.sampling.max_tokens or DEFAULT_MAX_TOKENS,
            context_length=1_000_000,
            end_tokens={EOS_ID: "</s>"},
            eos_ids=frozenset({EOS_ID}),
            seed=request.sampling.seed or 0,
        )

    def finish(
        self, request: Request, spec: RowSpec, result: RowResult, *, request_id: str, created: int, queue_s: float
    ) -> Result:
        details = result.stop_details
        choice = Choice(
            index=0,
            text=result.text,
            finish_reason=FINISH_REASONS[details.type],
            stop_reason=None,
            stop_details=details,
        )
        run = RunInfo(eos=(), seed=0, content_hash=request.content_hash, queue_s=queue_s, prefill_s=0.0, decode_s=0.0)
        return Result(
            custom_id=request.custom_id,
            request_id=request_id,
            endpoint=request.endpoint,
            model="fake",
            created=created,
            choices=(choice,),
            usage=Usage(prompt_tokens=len(spec.prompt_ids), completion_tokens=len(result.token_ids)),
            run=run,
        )


class FakeWorker(BatchWorker):
    """`BatchWorker` with everything real but the model: for ``rq worker -w fake_engine.FakeWorker``."""

    step_s = 0.001

    def load_backend(self, config: WorkerConfig) -> Backend:
        width = config.engine.max_num_seqs
        return Backend(FakePreparer(), lambda: FakeEngine(width, self.step_s), "model fake")


class LoadingWorker(FakeWorker):
    """Never has its model, and says in Redis that it tries to load it."""

    def load_backend(self, config: WorkerConfig) -> Backend:
        self.connection.set("loading", self.name)
        time.sleep(3600)
        raise AssertionError("nobody waits that long")


class SlowWorker(FakeWorker):
    """Leaves time to look at it, or to kill it, while it works."""

    step_s = 0.02
