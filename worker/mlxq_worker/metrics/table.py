"""The metrics of a worker, as data. Names, units and meanings are vLLM's where it has the same, under `mlxq_`, so that
dashboards made for it port by renaming."""

from __future__ import annotations

from mlxq.metrics.metric import Metric

STEP_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Buckets of what a step takes, or a token."""
REQUEST_S = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 3600.0, 10_800.0, 28_800.0, 86_400.0)
"""Buckets of what a request takes: in a bulk queue most of it is the wait, which may last a night."""

# --- The engine, as the decode thread sees it -----------------------------------------------------------------

NUM_RUNNING = Metric("num_requests_running", "gauge", "Rows in the batch, decoding or being prefilled.")
NUM_WAITING = Metric(
    "num_requests_waiting", "gauge", "Rows that are prepared and wait for room in the batch; the queue is job_count."
)
BATCH_OCCUPANCY = Metric("batch_occupancy", "gauge", "Running rows over the most that may run (--max-num-seqs).")
KV_USAGE = Metric(
    "kv_cache_usage_perc",
    "gauge",
    "Share of the memory for keys and values that the running rows have reserved, 1 being all of it.",
)
PROMPT_TOKENS = Metric("prompt_tokens_total", "counter", "Tokens of prompts that entered the batch, shared ones too.")
GENERATION_TOKENS = Metric("generation_tokens_total", "counter", "Tokens generated and kept.")
PREFILLED_TOKENS = Metric("prefilled_tokens_total", "counter", "Tokens of prompts that the device has computed.")
PREFIX_QUERIES = Metric(
    "prefix_cache_queries_total", "counter", "Tokens of prompts for which a shared prefix was looked for."
)
PREFIX_HITS = Metric(
    "prefix_cache_hits_total", "counter", "Tokens of these that were computed already, for another prompt."
)
STEPS = Metric(
    "step_duration_seconds", "histogram", "From the start of an engine step to the start of the next.", (), STEP_S
)
ROWS_COMPUTED = Metric(
    "rows_computed_total", "counter", "Rows of all decode steps; each is a token that was kept, or thrown away."
)
ROW_EFFICIENCY = Metric(
    "row_efficiency", "gauge", "Tokens kept over rows computed, since the process with the model started."
)
INTER_TOKEN = Metric(
    "inter_token_latency_seconds",
    "histogram",
    "Between two tokens of an answer: each token counts with its answer's mean. Stalls of single steps show in"
    " step_duration_seconds.",
    (),
    STEP_S,
    semconv="gen_ai.server.time_per_output_token",
)
STEPS_RAISED = Metric("steps_raised_total", "counter", "Steps that raised an error and cost the batch in the engine.")
MODEL_LOAD = Metric("model_load_seconds", "gauge", "How long it took to load the model.")
MEMORY_USED = Metric("memory_used_bytes", "gauge", "What the process with the model takes of the machine's memory.")
MEMORY_LIMIT = Metric("memory_limit_bytes", "gauge", "What it may take (--memory-limit).")
WIDTH = Metric("max_running_rows", "gauge", "The most rows that may run now: fewer than usual while memory is short.")

ENGINE_METRICS = (
    NUM_RUNNING,
    NUM_WAITING,
    BATCH_OCCUPANCY,
    KV_USAGE,
    PROMPT_TOKENS,
    GENERATION_TOKENS,
    PREFILLED_TOKENS,
    PREFIX_QUERIES,
    PREFIX_HITS,
    STEPS,
    ROWS_COMPUTED,
    ROW_EFFICIENCY,
    INTER_TOKEN,
    STEPS_RAISED,
    MODEL_LOAD,
    MEMORY_USED,
    MEMORY_LIMIT,
    WIDTH,
)

# --- Requests and jobs, as the I/O thread sees them -----------------------------------------------------------

SUCCESS = Metric(
    "request_success_total",
    "counter",
    "Answers written, by finish reason; a request with several answers counts each.",
    ("finished_reason",),
)
FAILURE = Metric("request_failure_total", "counter", "Requests that failed, by the code in the error file.", ("code",))
CANCELLED = Metric("request_cancelled_total", "counter", "Requests that somebody cancelled.")
STOPS = Metric(
    "stop_total",
    "counter",
    "Answers by what stopped them; token_id is empty where no token did, and `other` after 64 different ones.",
    ("type", "token_id"),
)
QUEUE_TIME = Metric(
    "request_queue_time_seconds", "histogram", "From a request's arrival to its entry into the batch.", (), REQUEST_S
)
PREFILL_TIME = Metric(
    "request_prefill_time_seconds", "histogram", "From there to its first token.", (), (0.01, 0.03, *REQUEST_S)
)
DECODE_TIME = Metric("request_decode_time_seconds", "histogram", "From there to its last token.", (), REQUEST_S)
FIRST_TOKEN = Metric(
    "time_to_first_token_seconds",
    "histogram",
    "From a request's arrival to its first token, the wait in the queue included.",
    (),
    REQUEST_S,
    semconv="gen_ai.server.time_to_first_token",
)
E2E = Metric(
    "e2e_request_latency_seconds",
    "histogram",
    "From a request's arrival to its last token.",
    (),
    REQUEST_S,
    semconv="gen_ai.server.request.duration",
)
ACTIVE_JOBS = Metric("active_jobs", "gauge", "Jobs that the worker has claimed and not ended yet.")
RETRIES = Metric(
    "job_retries_total",
    "counter",
    "Jobs sent back to be tried again: step_raised here, worker_died anywhere (counted by who found them).",
    ("reason",),
)
STRIKES = Metric("strikes_total", "counter", "Strikes given to jobs; with three a job fails.")
RETURNED = Metric("jobs_returned_total", "counter", "Jobs given back without a strike: on a stop, or for want of room.")
LEASES_LOST = Metric("leases_lost_total", "counter", "Jobs that others took from this worker while it had them.")
LATE_RESULTS = Metric("late_results_total", "counter", "Results dropped, as their jobs belonged to others by then.")
REDIS_ERRORS = Metric("redis_errors_total", "counter", "Tries to reach Redis that failed and were repeated.")
WORKER_REDIS_UP = Metric("worker_redis_up", "gauge", "Whether the worker's own connection to Redis works: 1, or 0.")

JOB_METRICS = (
    SUCCESS,
    FAILURE,
    CANCELLED,
    STOPS,
    QUEUE_TIME,
    PREFILL_TIME,
    DECODE_TIME,
    FIRST_TOKEN,
    E2E,
    ACTIVE_JOBS,
    RETRIES,
    STRIKES,
    RETURNED,
    LEASES_LOST,
    LATE_RESULTS,
    REDIS_ERRORS,
    WORKER_REDIS_UP,
)

# --- The process with the model, as the supervisor sees it ----------------------------------------------------

WORKER_UP = Metric(
    "worker_up",
    "gauge",
    "Whether the process with the model runs and has loaded it: 1, or 0. Of several models only that whose turn it is.",
)
RESTARTS = Metric(
    "worker_restarts_total",
    "counter",
    "Times the process with the model has ended and is started again: died, recycled (as asked), or no_redis.",
    ("reason",),
)
REPORT_AGE = Metric(
    "worker_report_age_seconds", "gauge", "Age of the newest figures of the process with the model; it sends some"
    " every second."
)  # fmt: skip
WORKER_INFO = Metric("worker_info", "gauge", "1; the labels say which worker this is.", ("version", "queues"))

SUPERVISOR_METRICS = (WORKER_UP, RESTARTS, REPORT_AGE, WORKER_INFO)

WORKER_METRICS = (*ENGINE_METRICS, *JOB_METRICS, *SUPERVISOR_METRICS)
"""All of a worker's own; each has the label `model_name`, too, as vLLM's have."""
