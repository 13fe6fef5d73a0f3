"""The function that every job names. It is a name and nothing else: `BatchWorker` recognises it and never calls it.

It exists so that RQ's tools can resolve the name, and so that a stock worker that takes such a job fails it with a
sentence instead of an import error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn


def generate(line: Mapping[str, Any]) -> NoReturn:
    """Stands for one request.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(
        "mlxq jobs are decoded in batches and can't be run one by one: start `mlxq worker`, or"
        " `rq worker -w mlxq_worker.BatchWorker --serializer json`"
    )
