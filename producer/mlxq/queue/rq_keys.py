"""RQ's keys that RQ 3.0 itself has no typed function for, in one place that is checked when RQ changes."""

from __future__ import annotations

from rq.defaults import RQ_KEY_PREFIX


def results(job_id: str) -> str:
    """The stream of a job's results, the newest last."""
    return f"{RQ_KEY_PREFIX}:results:{job_id}"


def executions(job_id: str) -> str:
    """The sorted set of the executions that workers hold of a job."""
    return f"{RQ_KEY_PREFIX}:executions:{job_id}"
