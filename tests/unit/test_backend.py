"""How a worker gets its model."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.support.engine_runs import run
from tests.support.row_specs import row_spec
from tests.support.waiting import DEADLINE_S

from mlxq_worker.backend import load_backend
from mlxq_worker.config import WorkerConfig
from mlxq_worker.engine.runners import trial
from mlxq_worker.engine.scheduling import step_size

LOAD_AND_TELL = """
import sys
from mlxq_worker import backend
from mlxq_worker import config

def tell():
    print("mlx.core" in sys.modules)
    raise SystemExit

backend.preload_openblas = tell
backend.load_backend(config.WorkerConfig(model="demo"))
"""


def test_openblas_is_asked_for_before_anything_brings_in_mlx() -> None:
    told = subprocess.run(
        [sys.executable, "-c", LOAD_AND_TELL], capture_output=True, text=True, timeout=DEADLINE_S, check=True
    )

    assert told.stdout == "False\n"


def test_the_step_size_is_measured_once_however_many_engines_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def measure(_step_seconds: object, num_rows: int) -> int:
        measured.append(num_rows)
        return 128

    monkeypatch.setattr(step_size, "find_size", measure)
    backend = load_backend(WorkerConfig(model="demo"))

    for _ in range(3):
        run(backend.new_engine(), [row_spec(prompt_ids=(1,) * 300, max_tokens=1)])

    assert measured == [32]


def test_the_model_is_tried_out_once_however_many_engines_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, find_packing = [], trial.find_packing
    for module in ("mlxq_worker.engine.runners.trial", "mlxq_worker.engine.engine"):
        monkeypatch.setattr(f"{module}.find_packing", lambda model: tried.append(model) or find_packing(model))
    backend = load_backend(WorkerConfig(model="demo"))

    for width in (2, 4):
        backend.new_engine()
        backend.engine_at(width)

    assert len(tried) == 1
