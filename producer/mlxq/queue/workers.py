"""Who serves a queue: counts the workers that RQ knows of."""

from __future__ import annotations

import logging

from redis import Redis
from rq.worker_registration import WORKERS_BY_QUEUE_KEY

from mlxq.queue.connect import queue_errors

logger = logging.getLogger("mlxq")


def num_workers(connection: Redis, queue: str) -> int:
    """How many workers are registered on the queue and alive.

    Raises:
        QueueUnavailable: Redis can't be reached.
    """
    with queue_errors(connection), connection.pipeline(transaction=False) as pipe:
        for worker_key in connection.smembers(WORKERS_BY_QUEUE_KEY % queue):
            pipe.exists(worker_key)
        return sum(pipe.execute())


def warn_if_none(connection: Redis, queue: str) -> None:
    """Log a warning if nobody would answer what waits in this queue."""
    if num_workers(connection, queue) == 0:
        logger.warning("no worker serves queue %r yet; waiting for one: mlxq worker --queue %s", queue, queue)
