"""Loads OpenBLAS before anything imports mlx, as the Linux wheel's own is fifty times slower; names the fixtures.

Hypothesis times no single example: on a busy machine any of them may take long, and pytest's timeout bounds them all.

`tests/parity` needs torch and is run by `make parity`, which installs it; `make compat` does so for `tests/compat` and
the programs that it is about. `tests/alerts` needs a Prometheus, and is run by `make alerts`.

`make test` runs several files at once, each in a process that has a Redis of its own (`-n`, `--dist loadfile`). There
BLAS takes one thread in each, and in what they start: with more, the threads of all of them get into each other's way.

A thousand of the processes that they start are Python's, and those write down the byte code of our sources, wherever
`PYTHONDONTWRITEBYTECODE` says otherwise: to compile them takes longer than to import them.

What a shell starts in the background ignores SIGINT, and so does all that it starts, unless somebody asks for it again.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")

signal.signal(signal.SIGINT, signal.default_int_handler)

if sys.platform == "linux":
    ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)

settings.register_profile("mlxq", deadline=None)
settings.load_profile("mlxq")

collect_ignore = [] if find_spec("torch") else ["parity"]
collect_ignore += ["compat"] if "MLXQ_COMPAT" not in os.environ else []
collect_ignore += ["alerts"] if "MLXQ_PROMETHEUS" not in os.environ else []
pytest_plugins = ["tests.support.redis_fixture"]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is collected lives to the end: the garbage collector need not look through it, a third of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread each folder's files over the run: those of `queue` mostly wait and those of `engine` compute, so that both
    go well side by side. `unit` has the last ones, which are short."""
    files = list(dict.fromkeys(item.path for item in items))
    place: dict[Path, float] = {}
    for folder in {path.parent for path in files}:
        own = [path for path in files if path.parent == folder]
        share = 1.0 if folder.name == "unit" else 0.8
        place |= {path: share * index / len(own) for index, path in enumerate(own)}
    items.sort(key=lambda item: place[item.path])


@pytest.fixture(autouse=True)
def _signal_handlers() -> Iterator[None]:
    """No test leaves its handlers, as those of a worker in this process, to the next one."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)
