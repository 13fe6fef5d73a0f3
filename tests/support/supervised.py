"""A worker of the tests as the process that a supervisor keeps: ``python -m tests.support.supervised
MODULE:CLASS``, the rest from the environment, as `mlxq worker` does it."""

from __future__ import annotations

import logging
import os
import sys
from importlib import import_module

from tests.support.redis_at import redis_at

from mlxq_worker.config import WorkerConfig


def variables(**given: str) -> dict[str, str]:
    """With which it finds what this process can import."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **given}


def command(worker: type) -> list[str]:
    """What to run for a worker of this class."""
    return [sys.executable, "-m", "tests.support.supervised", f"{worker.__module__}:{worker.__qualname__}"]


def main() -> int:
    module, _, name = sys.argv[1].partition(":")
    worker_class = getattr(import_module(module), name)
    logging.basicConfig(level=logging.INFO)
    config = WorkerConfig.from_env(os.environ)
    with redis_at(config.url) as connection:
        worker = worker_class(
            list(config.queues), name=config.name, connection=connection, serializer="json", config=config
        )
        worker.work()
        return int(worker.exit_code)


if __name__ == "__main__":
    sys.exit(main())
