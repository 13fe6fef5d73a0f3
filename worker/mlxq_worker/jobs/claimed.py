"""What a claimed job is: reads it as RQ stored it, and decides whether it is one of ours.

A payload is JSON and names `keys.FUNCTION_NAME`, or it is refused: it is never unpickled, and nothing that it
names is imported. Sends nothing to Redis and doesn't know what a request is.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from rq.queue import Queue
from rq.utils import str_to_date

from mlxq import keys
from mlxq.errors import RequestError
from mlxq.logs import fields
from mlxq.requests import checks, openai

NOT_JSON = "not_json"
"""The error code of a job that was written with another serializer; its producer can't read a JSON answer."""

MAX_DATA_BYTES = 4 * openai.MAX_LINE_BYTES
"""Of a job's JSON. RQ escapes all but ASCII, which makes a line of text up to three times as long."""

RQ_FEATURES = ("a success callback", "a failure callback", "a stopped callback", "webhooks", "repetitions")
"""What RQ can hang on a job and this worker doesn't do, in the order in which the scripts report it."""

_NO_LIMIT_S = -1.0
"""Of RQ's `job_timeout`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedJob:
    """One job that this worker owns, for as long as its execution holds the lease.

    `execution_id` is new with every claim. `claimed_at` and `enqueued_at` are in Unix seconds. `strikes` counts
    how often a step raised or a worker died while it held the job. `num_data_bytes` is what lies in Redis, of which
    `data` holds nothing if that is too much. `rq_timeout` is RQ's `job_timeout` as it stands there. For one that
    `is_live` somebody waits, and reads along where it `is_streamed`.
    """

    job_id: str
    execution_id: str
    queue: str
    data: bytes
    num_data_bytes: int = 0
    claimed_at: float
    enqueued_at: float
    custom_id: str
    batch: str | None = None
    strikes: int = 0
    rq_features: tuple[str, ...] = ()
    rq_timeout: str = ""
    is_live: bool = False
    is_streamed: bool = False

    @classmethod
    def read(cls, reply: Sequence[Any], now: float) -> ClaimedJob:
        """One job as the scripts describe it, whatever somebody has written into its hash: what can't be read is
        taken for unset, since an error here would end every worker that meets the job."""
        queue, job_id, execution_id, strikes, size, data, meta, enqueued_at, timeout, live, *features = reply
        known = _meta(meta)
        name = _text(job_id)
        return cls(
            job_id=name,
            execution_id=_text(execution_id),
            queue=_text(queue),
            data=data or b"",
            num_data_bytes=size,
            claimed_at=now,
            enqueued_at=_timestamp(enqueued_at, now),
            custom_id=known.custom_id or name,
            batch=known.batch,
            strikes=int(strikes or 0),
            rq_features=tuple(what for what, num_bytes in zip(RQ_FEATURES, features, strict=True) if num_bytes),
            rq_timeout=_text(timeout),
            is_live=bool(live),
            is_streamed=bool(live) and known.stream is True,
        )

    def log_fields(self) -> dict[str, Any]:
        """Which job a log message is about, for its `extra`."""
        return fields(job=self.job_id, batch=self.batch)

    def line(self) -> dict[str, Any]:
        """The request that the job carries, not validated any further.

        Raises:
            RequestError: the job is not one of ours, or asks RQ for something that this worker doesn't do.
        """
        function, args, kwargs = self._call()
        if function != keys.FUNCTION_NAME:
            raise RequestError(
                f"this worker runs {keys.FUNCTION_NAME} and nothing else; the job calls {checks.show(function)}",
                code="function_not_allowed",
            )
        if self.rq_features:
            wanted = ", ".join(self.rq_features)
            raise RequestError(f"mlxq workers don't do {wanted}; the job asks RQ for that", code="unsupported_job")
        values = [*args, *kwargs.values()]
        if len(values) != 1 or not isinstance(values[0], dict) or kwargs.keys() - {"line"}:
            message = f"{keys.FUNCTION_NAME} takes one argument, a request line as an object"
            raise RequestError(message, code="invalid_job")
        return values[0]

    def allowance_s(self) -> float | None:
        """RQ's `job_timeout`: how many seconds the job may run; `None` for as long as it takes.

        Raises:
            RequestError: it is no number.
        """
        try:
            seconds = float(self.rq_timeout or _NO_LIMIT_S) or Queue.DEFAULT_TIMEOUT  # RQ takes 0 for its default
        except ValueError:
            seconds = math.nan
        if math.isnan(seconds):
            message = (
                f"RQ's job_timeout must be a number of seconds, or -1 for none, not {checks.show(self.rq_timeout)}"
            )
            raise RequestError(message, code="invalid_job", param="job_timeout")
        return seconds if seconds > 0 and math.isfinite(seconds) else None

    def without_data(self) -> ClaimedJob:
        """The same job, once nobody needs its data any more: that may be megabytes."""
        return replace(self, data=b"")

    def _call(self) -> tuple[str, list[Any], dict[str, Any]]:
        data = _decompressed(self.data)
        if max(self.num_data_bytes, len(data)) > MAX_DATA_BYTES:
            message = f"the job's data is longer than {MAX_DATA_BYTES // 2**20} MiB"
            raise RequestError(message, code="job_too_large", status_code=413)
        try:
            function, _, args, kwargs = msgspec.json.decode(
                data, type=tuple[str, str | None, list[Any], dict[str, Any]]
            )
        except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            message = "the job's data is not JSON as RQ's JSONSerializer writes it: enqueue with serializer='json'"
            raise RequestError(message, code=NOT_JSON) from error
        return function, args, kwargs


class _Meta(msgspec.Struct):
    custom_id: str | None = None
    batch: str | None = None
    stream: bool | None = None


def _meta(meta: bytes | None) -> _Meta:
    """The parts of a job's meta that mlxq puts there; anybody may have put there something else."""
    try:
        return msgspec.json.decode(meta, type=_Meta) if meta else _Meta()
    except (ValueError, RecursionError):
        return _Meta()


def _timestamp(date: bytes | None, default: float) -> float:
    try:
        return str_to_date(date).timestamp() if date else default
    except ValueError:
        return default


def _decompressed(data: bytes) -> bytes:
    """At most one byte more than the limit: a few kilobytes can stand for gigabytes."""
    try:
        return zlib.decompressobj().decompress(data, MAX_DATA_BYTES + 1)
    except zlib.error:
        return data  # RQ reads uncompressed data, too


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")
