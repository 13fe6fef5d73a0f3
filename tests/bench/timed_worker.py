"""A worker that notes when its engine's steps began and ended: in between, the thread that owns MLX did something else.

Runs under stock ``rq worker -w tests.bench.timed_worker.TimedWorker``; writes its notes where `NOTES_VARIABLE` says
once it ends.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mlxq_worker.backend import Backend
from mlxq_worker.config import WorkerConfig
from mlxq_worker.engine.api import AbortReason, Engine, RowId, RowSpec, StepReport
from mlxq_worker.worker import BatchWorker

NOTES_VARIABLE = "BENCH_STEP_NOTES"


class TimedEngine:
    """An engine whose steps are timed, in seconds on the system's monotonic clock."""

    def __init__(self, engine: Engine, notes: Path) -> None:
        self._engine = engine
        self._notes = notes
        self._steps: list[tuple[float, float]] = []
        self.admit: Callable[[RowSpec], None] = engine.admit

    def step(self, now: float) -> StepReport:
        start = time.monotonic()
        report = self._engine.step(now)
        self._steps.append((start, time.monotonic()))
        return report

    def cancel(self, row_id: RowId, reason: AbortReason = "cancelled") -> None:
        self._engine.cancel(row_id, reason)

    def close(self) -> None:
        self._engine.close()
        self._notes.write_text(json.dumps(self._steps))


class TimedWorker(BatchWorker):
    """A `BatchWorker` with timed engines."""

    def load_backend(self, config: WorkerConfig) -> Backend:
        backend = super().load_backend(config)
        notes = Path(os.environ[NOTES_VARIABLE])
        return replace(backend, new_engine=lambda: TimedEngine(backend.new_engine(), notes))
