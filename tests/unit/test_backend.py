"""How a worker gets its model."""

from __future__ import annotations

import subprocess
import sys

LOAD_AND_TELL = """
import sys
from mlxq_worker import backend, config

def tell():
    print("mlx.core" in sys.modules)
    raise SystemExit

backend.preload_openblas = tell
backend.load_backend(config.WorkerConfig(model="demo"))
"""


def test_openblas_is_asked_for_before_anything_brings_in_mlx() -> None:
    told = subprocess.run([sys.executable, "-c", LOAD_AND_TELL], capture_output=True, text=True, timeout=60, check=True)

    assert told.stdout == "False\n"
