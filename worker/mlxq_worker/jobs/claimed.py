"""What a claimed job is: reads it as RQ stored it, and decides whether it is one of ours.

A payload is JSON and names `keys.FUNCTION_NAME`, or it is refused: it is never unpickled, and nothing that it
names is imported. Sends nothing to Redis and doesn't know what a request is.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from rq.utils import str_to_date

from mlxq import keys
from mlxq.errors import RequestError
from mlxq.requests import checks, openai

NOT_JSON = "not_json"
"""The error code of a job that was written with another serializer; its producer can't read a JSON answer."""

MAX_DATA_BYTES = 4 * openai.MAX_LINE_BYTES
"""Of a job's JSON. RQ escapes all but ASCII, which makes a line of text up to three times as long."""

RQ_FEATURES = ("a success callback", "a failure callback", "a stopped callback", "webhooks", "repetitions")
"""What RQ can hang on a job and this worker doesn't do, in the order in which the scripts report it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedJob:
    """One job that this worker owns, for as long as its execution holds the lease.

    `execution_id` is new with every claim. `claimed_at` and `enqueued_at` are in Unix seconds. `strikes` counts
    how often a step raised or a worker died while it held the job.
    """

    job_id: str
    execution_id: str
    queue: str
    data: bytes
    claimed_at: float
    enqueued_at: float
    custom_id: str
    batch: str | None = None
    strikes: int = 0
    rq_features: tuple[str, ...] = ()

    @classmethod
    def read(cls, reply: Sequence[bytes | None], now: float) -> ClaimedJob:
        """One job as the scripts describe it, whatever somebody has written into its hash: what can't be read is
        taken for unset, since an error here would end every worker that meets the job."""
        queue, job_id, execution_id, strikes, data, meta, enqueued_at, *features = reply
        known = _meta(meta)
        name = _text(job_id)
        return cls(
            job_id=name,
            execution_id=_text(execution_id),
            queue=_text(queue),
            data=data or b"",
            claimed_at=now,
            enqueued_at=_timestamp(enqueued_at, now),
            custom_id=known.custom_id or name,
            batch=known.batch,
            strikes=int(strikes or 0),
            rq_features=tuple(what for what, value in zip(RQ_FEATURES, features, strict=True) if value),
        )

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

    def _call(self) -> tuple[str, list[Any], dict[str, Any]]:
        data = _decompressed(self.data)
        if len(data) > MAX_DATA_BYTES:
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
