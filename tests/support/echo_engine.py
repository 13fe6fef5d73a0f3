"""An engine with the real scheduler and real rows, and no model: the answer to a prompt is the prompt, byte by byte.

So whose turn it is, stop strings and streams are as in a worker with a model. A prompt of a chat is its last message.
With `ignore_eos` it is repeated up to the limit.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace

from tests.support.fake_engine import FakePreparer, FakeWorker, width_of

from mlxq.contract import Request
from mlxq_worker.backend import Backend
from mlxq_worker.config import WorkerConfig
from mlxq_worker.engine.api import AbortReason, RowId, RowSpec, StepReport, Streaming
from mlxq_worker.engine.rows.beam_group import new_group
from mlxq_worker.engine.scheduling.scheduler import Scheduler

EOS = 256


def decode(token_ids: Sequence[int]) -> str:
    return bytes(token_id for token_id in token_ids if token_id != EOS).decode(errors="replace")


def _token(spec: RowSpec, index: int) -> int:
    if index == len(spec.prompt_ids) and spec.eos_ids:
        return EOS
    return spec.prompt_ids[index % len(spec.prompt_ids)]


class EchoEngine:
    """`entered` says on which step each row got into the batch, `came` on which it was admitted to the queue before it;
    `live` has the live ones."""

    def __init__(self, max_num_seqs: int, step_s: float = 0.0) -> None:
        self._max_num_seqs = max_num_seqs
        self._step_s = step_s
        self._scheduler = Scheduler(max_num_seqs)
        self.num_steps = 0
        self.num_useful = 0
        self.num_cancelled = 0
        self.came: dict[RowId, int] = {}
        self.entered: dict[RowId, int] = {}
        self.live: list[RowId] = []

    def admit(self, spec: RowSpec) -> None:
        self.came[spec.row_id] = self.num_steps
        if spec.is_live:
            self.live.append(spec.row_id)
        self._scheduler.add(new_group(spec, decode))

    def step(self, now: float) -> StepReport:
        time.sleep(self._step_s)
        self.num_steps += 1
        plan, finished = self._scheduler.schedule(now)
        for chunk in plan.prefill:
            self.entered[chunk.row.spec.row_id] = self.num_steps
        rows = plan.rows
        tokens = [_token(row.spec, len(row.token_ids)) for row in rows]
        finished += self._scheduler.commit(rows, tokens, now)
        self.num_useful += len(rows)
        return StepReport(
            finished=tuple(finished),
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            rows_computed=len(rows),
            rows_useful=len(rows),
            num_prefilled=plan.num_prefilled,
            pieces=self._scheduler.take_pieces(),
        )

    def cancel(self, row_id: RowId, reason: AbortReason = "cancelled") -> None:
        self.num_cancelled += 1
        self._scheduler.abort(row_id, reason)

    def withdraw(self, row_ids: Collection[RowId] | None = None) -> tuple[RowSpec, ...]:
        return tuple(self._scheduler.withdraw(row_ids))

    def limit_rows(self, max_running: int | None) -> None:
        self._scheduler.limit_rows(max_running)

    def kv_usage(self) -> float:
        return self._scheduler.num_running / self._max_num_seqs

    def close(self) -> None:
        self._scheduler.clear()


class EchoPreparer(FakePreparer):
    def prepare(self, request: Request, request_id: str) -> tuple[RowSpec, ...]:
        prompt = request.messages[-1]["content"] if request.messages else str(request.prompt)
        ids = tuple(str(prompt).encode())
        sampling = request.sampling
        spec = RowSpec(
            row_id=RowId(request_id),
            prompt_ids=ids,
            max_tokens=sampling.max_tokens or len(ids) + 1,
            context_length=1_000_000,
            end_tokens={} if sampling.ignore_eos else {EOS: "</s>"},
            eos_ids=frozenset() if sampling.ignore_eos else frozenset({EOS}),
            seed=sampling.seed or 0,
            stop=sampling.stop,
        )
        return tuple(replace(spec, row_id=spec.row_id.answer(index)) for index in range(sampling.n))

    def streaming(self, request: Request, specs: tuple[RowSpec, ...]) -> tuple[RowSpec, ...]:
        return tuple(replace(spec, streaming=Streaming()) for spec in specs)


class EchoWorker(FakeWorker):
    """A worker with the last engine that it has built."""

    engine: EchoEngine | None = None

    def load_backend(self, config: WorkerConfig) -> Backend:
        width = width_of(config)
        return Backend(EchoPreparer(), lambda: self._new_engine(width), width, "model echo", model_name="echo")

    def _new_engine(self, width: int) -> EchoEngine:
        self.engine = EchoEngine(width, self.step_s)
        return self.engine
