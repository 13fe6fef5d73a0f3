"""What there is to measure, as data, and how it is served to Prometheus.

`metric` says what a metric is, `figures` holds their values as plain numbers, `queue_table` and `queue_figures` are the
queue's side of it; `exposition` and `server` turn figures into Prometheus's text over HTTP, and are the only ones that
need prometheus-client. Knows nothing of models or engines, whose metrics `mlxq_worker.metrics` adds.
"""
