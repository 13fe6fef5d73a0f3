"""How a job can end: each way is a function that builds the one `Ending` that the job store writes.

The answer is encoded here as RQ's JSONSerializer would, but with `allow_nan=False`: RQ stores a placeholder when
it can't serialise, and nobody hears of it. Sends nothing to Redis.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mlxq.contract import ChoiceError, Failure, Result
from mlxq.errors import RequestError
from mlxq.results.result_lines import failure_line, rejection, result_line
from mlxq_worker.jobs.claimed import NOT_JSON, ClaimedJob
from mlxq_worker.metrics.job_figures import Times

Outcome = Literal["finished", "failed", "cancelled"]
RqStatus = Literal["finished", "failed", "canceled", "stopped"]
CancelledAs = Literal["canceled", "stopped"]
"""RQ's words: `Job.cancel` and a batch's cancellation make a job canceled, the stop-job command stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How one job ended. `answer` is RQ's `return_value` (the output line) and `error` its `exc_string`, both
    encoded and empty for none; `counts` is what the batch adds up. For whoever watches the worker: the `code` of a
    failure, and of an answer the `finish_reasons` of its choices and the `times` that it took."""

    job: ClaimedJob
    outcome: Outcome
    rq_status: RqStatus
    answer: bytes
    error: bytes = b""
    counts: Mapping[str, int] = field(default_factory=dict)
    code: str = ""
    finish_reasons: tuple[str, ...] = ()
    times: Times | None = None


def answered(job: ClaimedJob, result: Result, cancelled_as: CancelledAs | None) -> Ending:
    """All rows ended. One that was cancelled on its way keeps the text it has."""
    was_cancelled = any(choice.stop_details.type == "cancelled" for choice in result.choices)
    return Ending(
        job=job,
        outcome="cancelled" if was_cancelled else "finished",
        rq_status=(cancelled_as or "canceled") if was_cancelled else "finished",
        answer=_encode_line(result_line(result)),
        counts=_counts(result),
        finish_reasons=tuple(choice.finish_reason for choice in result.choices),
        times=Times(result.run.queue_s, result.run.prefill_s, result.run.decode_s),
    )


def rejected(job: ClaimedJob, error: RequestError) -> Ending:
    """The request, or the job around it, can't be run by this worker."""
    line = failure_line(rejection(error, custom_id=job.custom_id, request_id=job.job_id))
    return Ending(
        job=job,
        outcome="failed",
        rq_status="failed",
        answer=b"" if error.code == NOT_JSON else _encode_line(line),
        error=_encode_error(f"RequestError: {error.message} ({error.code})"),
        code=error.code or "invalid_request",
    )


def gave_up(job: ClaimedJob, code: str, message: str, details: str = "") -> Ending:
    """The request may be fine, but it can't be brought to an end. `details` (a traceback) is for RQ's tools."""
    return Ending(
        job=job,
        outcome="failed",
        rq_status="failed",
        answer=_never_ran(job, code, message),
        error=_encode_error(details or f"{code}: {message}"),
        code=code,
    )


def all_rows_died(job: ClaimedJob, error: ChoiceError) -> Ending:
    """Every one of the job's rows ended in an error of its own, the first in this one."""
    return gave_up(job, error.code, error.message)


def cancelled(job: ClaimedJob, cancelled_as: CancelledAs, *, with_batch: bool) -> Ending:
    """The job, or its whole batch, was cancelled before any of its rows ran."""
    if with_batch:
        answer = _never_ran(job, "batch_cancelled", "the batch was cancelled before this request ran")
    else:
        answer = _never_ran(job, "cancelled", "the job was cancelled before it ran")
    return Ending(job=job, outcome="cancelled", rq_status=cancelled_as, answer=answer)


def _never_ran(job: ClaimedJob, code: str, message: str) -> bytes:
    failure = Failure(custom_id=job.custom_id, request_id=job.job_id, code=code, message=message)
    return _encode_line(failure_line(failure))


def _counts(result: Result) -> dict[str, int]:
    """Tokens, and choices by how they stopped."""
    stops = Counter(
        f"stop:{choice.stop_details.type}:{'' if (token := choice.stop_details.token_id) is None else token}"
        for choice in result.choices
    )
    usage = result.usage
    return {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens, **stops}


def _encode_line(line: Mapping[str, Any]) -> bytes:
    return b64encode(json.dumps(line, allow_nan=False, ensure_ascii=False).encode("utf-8", "replace"))


def _encode_error(error: str) -> bytes:
    return b64encode(zlib.compress(error.encode("utf-8", "replace")))
