"""The MLX worker behind mlxq: claims jobs, decodes them in one batch, writes results back.

`BatchWorker` is here for ``rq worker -w mlxq_worker.BatchWorker``; it is imported when it is asked for, so that
the rest of the package can be used without RQ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlxq_worker.worker import BatchWorker as BatchWorker


def __getattr__(name: str) -> object:
    if name != "BatchWorker":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mlxq_worker.worker import BatchWorker

    return BatchWorker
