"""The metrics of queues, which whoever reaches Redis can tell: `mlxq metrics`, and the port of every worker.

Each that serves a queue tells the same of it, so a sum over servers counts it several times: take `max by (queue)`.
"""

from __future__ import annotations

from mlxq.metrics.metric import Metric

REDIS_UP = Metric("redis_up", "gauge", "Whether Redis answered this scrape's questions: 1, or 0.")
JOB_COUNT = Metric(
    "job_count",
    "gauge",
    "Jobs of a queue by state: waiting (live ones and those that wait for another try included), running, failed.",
    ("queue", "state"),
)
OLDEST_WAITING = Metric(
    "oldest_waiting_job_seconds",
    "gauge",
    "How long the job at the front of a queue has been there, by Redis's clock; 0 while none waits.",
    ("queue",),
)
WORKERS = Metric("workers", "gauge", "Workers of a queue that are alive, by RQ's state: idle, busy, suspended.",
                 ("queue", "state"))  # fmt: skip
BATCHES = Metric("batches", "gauge", "Batches by state: open (still being enqueued), running, done, cancelled.",
                 ("queue", "state"))  # fmt: skip
BATCH_JOBS = Metric(
    "batch_jobs",
    "gauge",
    "Jobs of all batches that are kept, by what became of them: pending, finished, failed, cancelled.",
    ("queue", "outcome"),
)
OLDEST_BATCH = Metric(
    "oldest_unfinished_batch_seconds",
    "gauge",
    "Age of the oldest batch that is not done; 0 if all are.",
    ("queue",),
)
BROKEN_BATCHES = Metric("broken_batches", "gauge", "Keys that are listed as batches and can't be read as one.")

QUEUE_METRICS = (REDIS_UP, JOB_COUNT, OLDEST_WAITING, WORKERS, BATCHES, BATCH_JOBS, OLDEST_BATCH, BROKEN_BATCHES)
