"""What queued jobs ask for: reads the content hash of a request out of the data that RQ keeps of its job.

Knows how RQ's JSONSerializer writes a call. Changes nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import msgspec
from redis import Redis
from rq.job import Job

from mlxq.errors import RequestError
from mlxq.queue.connect import replies_to
from mlxq.requests.normal_form import content_hash


class _Payload(msgspec.Struct):
    url: str
    body: dict[str, Any]


_Call = tuple[str, str | None, tuple[_Payload], dict[str, Any]]
"""Function, instance, arguments and keyword arguments."""


def content_hashes(connection: Redis, job_ids: Sequence[str]) -> list[str | None]:
    """The hash of each job's request; `None` where the job is gone, or holds something else. One round trip."""
    with connection.pipeline(transaction=False) as pipe:
        for job_id in job_ids:
            pipe.hget(Job.key_for(job_id), "data")
        return [_hash_in(data) for data in replies_to(pipe)]


def _hash_in(data: bytes | None) -> str | None:
    try:
        _, _, [payload], _ = msgspec.json.decode(zlib.decompress(data or b""), type=_Call)
    except (ValueError, RecursionError, zlib.error):
        return None
    try:
        return content_hash(payload.url, payload.body)
    except RequestError:  # a stranger's
        return None
