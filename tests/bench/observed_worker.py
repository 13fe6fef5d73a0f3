"""The worker processes of `tests.bench.observability`: one that is looked at, and one that is not.

    python -m tests.bench.observed_worker seen|unseen fake|MODEL

The rest comes from the environment. The first counts, reports and logs JSON, as `mlxq worker` does when it is asked.
The second counts nothing at all, which no option can ask for, and has no log.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import replace
from unittest.mock import patch

from redis import Redis
from tests.support.fake_engine import FakeWorker

import mlxq_worker.worker
from mlxq.logs import log_to_stderr
from mlxq.metrics.figures import Snapshot
from mlxq_worker.config import WorkerConfig
from mlxq_worker.metrics.job_figures import JobFigures
from mlxq_worker.worker import BatchWorker

FAKE = "fake"
SEEN, UNSEEN = "seen", "unseen"


class QuickWorker(FakeWorker):
    """Its steps take no time at all but for what the worker does about them."""

    step_s = 0.0


class NoFigures(JobFigures):
    """Counts nothing."""

    answered = failed = cancelled = late = lost = lambda self, *_: None
    gave_back = recovered = redis_answers = redis_failed = lambda self, *_: None

    def snapshot(self, num_active: int) -> Snapshot:
        return Snapshot()


def main() -> None:
    how, model = sys.argv[1:]
    config = replace(WorkerConfig.from_env(os.environ), model=model)
    kind = QuickWorker if model == FAKE else BatchWorker
    if how == SEEN:
        log_to_stderr("json", worker=config.name)
        figures = JobFigures
    else:
        logging.disable(logging.CRITICAL)
        figures = NoFigures
    with Redis.from_url(config.url) as connection, patch.object(mlxq_worker.worker, "JobFigures", figures):
        worker = kind(list(config.queues), name=config.name, connection=connection, serializer="json", config=config)
        worker.work(logging_level="INFO" if how == SEEN else "CRITICAL")


if __name__ == "__main__":
    main()
