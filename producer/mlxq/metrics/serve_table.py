"""The metrics of `mlxq serve`, which each process serves beside those of its queue. No key and no id is a label."""

from __future__ import annotations

from mlxq.metrics.metric import Metric

OPEN_BATCHES = Metric(
    "serve_open_batches",
    "gauge",
    "Batches of all keys that have not ended: validating, in_progress, finalizing, cancelling.",
    ("status",),
)
OPEN_REQUESTS = Metric("serve_open_requests", "gauge", "Requests of batches in progress that have no answer yet.")
LIVE_REQUESTS = Metric("serve_live_requests", "gauge", "Live requests of all keys that this process is answering.")
FILES = Metric("serve_files", "gauge", "Files of all keys.")
HTTP_REQUESTS = Metric(
    "serve_http_requests_total",
    "counter",
    "Requests that this process has answered, by their status; of those that nobody took to the end, too.",
    ("status",),
)

SERVE_METRICS = (OPEN_BATCHES, OPEN_REQUESTS, LIVE_REQUESTS, FILES, HTTP_REQUESTS)
