"""Tiny models that a process builds and tries out once, and engines over them: for tests that are about neither.

A model here belongs to all tests of the process: who wants to change one builds it anew (`tiny_models.build`).
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tests.support import architectures, tiny_models
from tests.support.engine_runs import decode

from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.engine.runners.trial import Packing, find_packing


@cache
def model_of(architecture: str) -> Any:
    """A model of `tiny_models`, for everyone."""
    return tiny_models.build(architecture)


@cache
def architecture_of(name: str) -> Any:
    """A model of `architectures`, for everyone."""
    return architectures.build(name)


_TRIED: dict[int, tuple[Any, Packing]] = {}
"""By the model's identity, with the model, so that nobody else gets it."""


def packing_of(model: Any) -> Packing:
    """How it is packed; it is tried out the first time that somebody asks, and kept."""
    if id(model) not in _TRIED:
        _TRIED[id(model)] = model, find_packing(model)
    return _TRIED[id(model)][1]


def engine_over(model: Any, **options: Any) -> BatchEngine:
    """A new engine over a model that is tried out only once, however many engines it gets."""
    packing = packing_of(model) if options.get("packed", True) else None
    return BatchEngine(model, decode, packing=packing, **options)
