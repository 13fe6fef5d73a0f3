"""Every Redis key, queue name and lifetime that mlxq adds to RQ's, described like a schema.

RQ's own keys (``rq:job:{job}``, ``rq:queue:{queue}``, ``rq:wip:{queue}``, ``rq:results:{job}``, ...) stay RQ's.
Beside them stand, per queue and per batch:

    mlxq:delayed:{queue}            zset    job id -> when it goes back into its queue, Unix seconds: a job with strikes
                                            waits here, and is called queued all the same
    mlxq:live:{queue}               list    the ids of waiting jobs that somebody waits for, as in rq:queue:{queue}
    mlxq:stream:{job}               stream  the answer to a live job as it grows, if that was asked for; what doesn't
                                            get in, or is cut off in front, comes with the answer itself
        execution                   str     whose answer that is
        pieces                      str     JSON: a list of [index of the choice, content | reasoning, how many
                                            characters of that part come before, text]
    mlxq:pulse:{queue}              hash    whether silent workers can be told from those that Redis kept from beating
        beat                        float   when a worker of the queue beat last, Redis's clock in Unix seconds
        trusted_from                float   from when on a lease that has run out tells of a death
        refusals                    int     how often Redis had refused beats by then, since it started
    mlxq:excused:{queue}            zset    leases of workers that Redis kept from beating, and that haven't since ->
                                            when that was seen; they cost no strike
    mlxq:batches                    zset    batch id -> created, Unix seconds
    mlxq:batch:{batch}              hash    the batch and its counts
        queue                       str     the RQ queue its jobs are in
        created                     float   Unix seconds
        total                       int     jobs enqueued so far
        sealed                      0 | 1   1 once the producer has enqueued everything
        cancelled                   0 | 1   1 once somebody asked to cancel it: workers drop its rows
        collected                   1       once somebody takes its answers out as they come; absent before. What is
                                            left of them is then part of a producer's window
        name                        str     what people call it; absent where nobody has said so
        metadata                    str     an object in JSON, the producer's own; absent where there is none
        finished failed cancelled_jobs   int   ended jobs; their sum equals `total` when the batch is done
        prompt_tokens completion_tokens  int   summed over finished jobs
        stop:{type}:{token_id}      int     finished choices by stop type; token_id is empty where there is none
    mlxq:batch:{batch}:jobs         zset    job id -> 0-based index in the input
    mlxq:batch:{batch}:events       stream  one entry per ended job, in order of ending
        job                         str     job id
        status                      str     finished | failed | cancelled
        code                        str     job_lost where the job was deleted before it had ended, else absent
    mlxq:models                     zset    name of a model that `mlxq worker --models` serves here -> when it was last
                                            announced, Redis's clock in Unix seconds; its queue is mlxq:{model}
    mlxq:serve:{batch}              str     the `mlxq serve` process that works on a batch; expires with its lease
    mlxq:broken                     hash    key that held something else than it should -> what about it; until a worker
                                            has logged it
    mlxq:broken:{key}               any     what was moved away from there, for 30 days

RQ's hash of a job has these fields more:

    rq:job:{job}                    hash
        mlxq_strikes                int     times a step raised or a worker died while it held the job
        mlxq_outcome                str     finished | failed | cancelled: what its batch has counted it as
        mlxq_claimed_by             str     the execution that has claimed it last
        mlxq_ended_by               str     the execution that wrote that end
        mlxq_live                   1       somebody waits for it: it is in no batch, and goes before those that are

and that of a worker:

    rq:worker:{name}                hash
        mlxq_machine                str     tells hosts of one name apart; empty where nothing does
        mlxq_model                  str     the model that it answers with; empty while it is being loaded
        mlxq_width                  int     how many rows it decodes at once, at most
        mlxq_tokens                 int     tokens generated for answers that have ended

A job's answer, good or bad, is the newest entry of RQ's ``rq:results:{job}``: its `return_value` is the output
line (an object with ``id``, ``custom_id``, ``response``, ``error``); a failed job has it beside RQ's `exc_string`.
A job that somebody else ended (stock RQ maintenance, `rq` commands) has no event until somebody looks for it:
`mlxq.queue.reconcile`.
"""

from __future__ import annotations

import hashlib

DEFAULT_URL = "redis://localhost:6379/0"
DEFAULT_QUEUE = "mlxq"
DEFAULT_MAX_INFLIGHT = 4096
"""Jobs that a run has in its queue at a time."""
DEFAULT_MAX_INFLIGHT_BYTES = 256 * 2**20
"""How long these are together, about."""
FUNCTION_NAME = "mlxq.jobs.generate"
"""The only function name that a worker executes."""

RESULT_TTL_S = 7 * 24 * 3600
FAILURE_TTL_S = 30 * 24 * 3600
BATCH_TTL_S = FAILURE_TTL_S
"""Counted from the last write to the batch; up to a hundredth less, since not every end of a job renews it."""

LIVE_TTL_S = 300
"""For how long a live job that has ended is kept for somebody who doesn't come."""
STREAM_TTL_S = 300
STREAM_LENGTH = 500
"""Entries that a stream keeps, about."""

CHUNK = 500
"""Jobs that are read or written in one round trip."""

BATCHES = "mlxq:batches"
BROKEN = "mlxq:broken"
WORKER_WIDTH, WORKER_TOKENS = "mlxq_width", "mlxq_tokens"
MODELS = "mlxq:models"
MODEL_TTL_S = 7 * 24 * 3600
"""A model that nobody has announced for so long isn't known any more."""
JOB_DIGEST_LENGTH = 20
"""Hex digits after ``{batch}-`` in a job id."""


def job_prefix(batch_id: str) -> str:
    """How the ids of a batch's jobs begin; `JOB_DIGEST_LENGTH` digits follow."""
    return f"{batch_id}-"


def job_id(batch_id: str, custom_id: str) -> str:
    """The id of the job that answers a request: always the same one, so that a batch has each request once."""
    return job_prefix(batch_id) + hashlib.sha256(custom_id.encode()).hexdigest()[:JOB_DIGEST_LENGTH]


def batch_id_of(job_id: str) -> str:
    """The id of the batch that a job's id names."""
    return job_id[: -JOB_DIGEST_LENGTH - 1]


def model_queue(model: str) -> str:
    """The RQ queue of requests for one of several models."""
    return f"mlxq:{model}"


def pulse(queue: str) -> str:
    """The hash that says when workers of a queue last beat."""
    return f"mlxq:pulse:{queue}"


def excused(queue: str) -> str:
    """The sorted set of the leases that may have run out because Redis took no beats."""
    return f"mlxq:excused:{queue}"


def live(queue: str) -> str:
    """The list of the ids of the live jobs that wait in a queue."""
    return f"mlxq:live:{queue}"


def stream(job_id: str) -> str:
    """The stream of what is told of a live job's answer as it grows."""
    return f"mlxq:stream:{job_id}"


def delayed(queue: str) -> str:
    """The sorted set of the jobs of a queue that wait before they are tried again."""
    return f"mlxq:delayed:{queue}"


def batch(batch_id: str) -> str:
    """The hash that describes one batch."""
    return f"mlxq:batch:{batch_id}"


def batch_jobs(batch_id: str) -> str:
    """The sorted set of a batch's job ids, scored by input index."""
    return f"mlxq:batch:{batch_id}:jobs"


def batch_events(batch_id: str) -> str:
    """The stream of a batch's ended jobs."""
    return f"mlxq:batch:{batch_id}:events"


def serve_lease(batch_id: str) -> str:
    """The lease on one of `mlxq serve`'s batches."""
    return f"mlxq:serve:{batch_id}"


def moved(key: str) -> str:
    """Where what a key held was moved to, as it had the wrong type."""
    return f"{BROKEN}:{key}"
