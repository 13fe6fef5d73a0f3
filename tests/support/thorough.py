"""How much a test tries: a sample in `make test`, far more in `make thorough`, which sets `MLXQ_THOROUGH`.

A test that asks is marked `thorough`, so that `make thorough` runs it. What it asserts is the same both ways.
"""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")


def sample_of(everything: T, sample: T) -> T:
    """All of it where that is asked for, else the sample."""
    return everything if os.environ.get("MLXQ_THOROUGH") == "1" else sample
