"""How a worker gets its model."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.support.waiting import DEADLINE_S

from mlxq_worker.backend import load_backend
from mlxq_worker.config import WorkerConfig
from mlxq_worker.engine import engine
from mlxq_worker.engine.engine import BatchEngine

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

    monkeypatch.setattr(engine, "find_size", measure)
    backend = load_backend(WorkerConfig(model="demo"))

    engines = [backend.new_engine() for _ in range(3)]

    assert measured == [32]
    assert [each.max_num_batched_tokens for each in engines if isinstance(each, BatchEngine)] == [128, 128, 128]
