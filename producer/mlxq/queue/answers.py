"""Collects the answers of one batch as its jobs end, each job exactly once.

The batch's event stream says what ended, in order. Jobs that somebody else ended (RQ's maintenance, the `rq`
commands, a deletion) leave no event, so after a quiet while the jobs not seen yet are looked up and what has become
of them is recorded. Only ids and positions are kept: how many answers are in memory is up to the caller.
"""

from __future__ import annotations

import time
import zlib
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar, cast

import msgspec
from redis import Redis
from rq.job import Job
from rq.registry import CanceledJobRegistry, FailedJobRegistry, FinishedJobRegistry

from mlxq import keys
from mlxq.contract import Failure
from mlxq.errors import BatchNotFound
from mlxq.queue import rq_keys
from mlxq.queue.broken_keys import kinds_of_batch, naming
from mlxq.queue.connect import queue_errors, replies_to
from mlxq.queue.reconcile import LOST, record_ends
from mlxq.queue.scripts import source
from mlxq.results.answer import Answer, Status
from mlxq.results.read_back import custom_id_of, decode_output_line
from mlxq.results.result_lines import failure_line
from mlxq.storage.id_table import IdTable

T = TypeVar("T")

_STATUSES: Mapping[bytes, Status] = {b"finished": "finished", b"failed": "failed", b"cancelled": "cancelled"}

_RQ_STATUSES: Mapping[bytes, Status] = {
    b"finished": "finished",
    b"failed": "failed",
    b"canceled": "cancelled",
    b"stopped": "cancelled",
}
"""RQ's words for jobs that have ended."""

RECONCILE_S = 5.0
RECONCILE_MAX_S = 60.0
BUSY_LOOP_GUARD_S = 0.02
"""Pause when a blocking read came back early and empty, as embedded servers may."""

_SIGNS_OF_A_CRASH = ("AbandonedJobError", "terminated unexpectedly", "stuck in intermediate queue")
"""What RQ writes about a job whose worker died."""


@dataclass(frozen=True, slots=True)
class EndedJob:
    """A job that has ended; its answer is not fetched yet. `is_lost` if it was deleted before it had one."""

    job_id: str
    status: Status
    event_id: str
    is_lost: bool = False


class Collector:
    """A reader of one batch, from its first event on. Not thread-safe.

    Args:
        reconcile_s: quiet seconds after which jobs without an event are looked for; doubles, up to a minute, as
            long as none is found. With 0, an empty `poll` says that nothing at all has ended.
    """

    def __init__(self, connection: Redis, batch_id: str, queue: str, *, reconcile_s: float = RECONCILE_S) -> None:
        self._redis = connection
        self._batch_id = batch_id
        self._queue = queue
        self._position = "0-0"
        self._seen = IdTable()
        self._noted: list[EndedJob] = []
        self._unfetched: list[EndedJob] = []
        self._reconcile_s = reconcile_s
        self._wait_s = reconcile_s
        self._quiet_since = time.monotonic()

    def poll(self, block_s: float) -> list[EndedJob]:
        """What has ended since the last call; waits up to `block_s` for the first one.

        Raises:
            QueueUnavailable: Redis can't be reached.
        """
        with queue_errors(self._redis), naming(self._redis, kinds_of_batch(self._batch_id)):
            self._note(self._read_events(block_s))
            now = time.monotonic()
            if not self._noted and now - self._quiet_since >= self._wait_s:
                self._reconcile()
                self._wait_s = self._reconcile_s if self._noted else min(2 * self._wait_s, RECONCILE_MAX_S)
                self._quiet_since = now
            elif self._noted:
                self._quiet_since = now
        ended, self._noted = self._noted, []
        return ended

    def next_answers(self, block_s: float) -> Iterator[Answer]:
        """`poll`, then `fetch`. What Redis's absence keeps from being fetched comes with the next call.

        Raises:
            QueueUnavailable: Redis can't be reached.
        """
        self._unfetched += self.poll(block_s)
        while self._unfetched:
            yield from self.fetch(self._unfetched[: keys.CHUNK])
            del self._unfetched[: keys.CHUNK]

    def fetch(self, ended: Sequence[EndedJob]) -> Iterator[Answer]:
        """The answers of ended jobs, one round trip per chunk.

        Raises:
            QueueUnavailable: Redis can't be reached.
        """
        for chunk in chunked(ended, keys.CHUNK):
            with queue_errors(self._redis):
                answers = self._fetch_chunk(chunk)
            yield from answers

    def look_up(self, job_ids: Iterable[str]) -> Iterator[Answer]:
        """The answers of those jobs that have ended by now, whether they were collected or not.

        Raises:
            QueueUnavailable: Redis can't be reached.
        """
        for chunk in chunked(job_ids, keys.CHUNK):
            with queue_errors(self._redis), self._redis.pipeline(transaction=False) as pipe:
                for job_id in chunk:
                    pipe.hget(Job.key_for(job_id), "status")
                statuses = [_RQ_STATUSES.get(status or b"") for status in replies_to(pipe)]
            found = zip(chunk, statuses, strict=True)
            yield from self.fetch([EndedJob(job_id, status, "") for job_id, status in found if status is not None])

    def is_done(self) -> bool:
        """Whether the batch is sealed and every job that is still in it has been seen.

        Raises:
            BatchNotFound: the batch is gone.
        """
        # No transaction, which a full Redis refuses: of a batch that was sealed first, the jobs are counted later.
        known, pipeline = kinds_of_batch(self._batch_id), self._redis.pipeline(transaction=False)
        with queue_errors(self._redis), naming(self._redis, known), pipeline as pipe:
            pipe.hget(keys.batch(self._batch_id), "sealed")
            pipe.zcard(keys.batch_jobs(self._batch_id))
            sealed, num_jobs = pipe.execute()
            if sealed is None:
                raise BatchNotFound(f"there is no batch {self._batch_id!r} in this Redis")
            if sealed != b"1" or len(self._seen) < num_jobs:
                return False
            return next(self._unseen(), None) is None

    def forget(self, answers: Sequence[Answer | EndedJob]) -> None:
        """Delete collected jobs and their answers from Redis and from the batch; its counts stay.

        A forgotten job may be submitted again. Keeps the memory of a long run flat.
        """
        for chunk in chunked(answers, keys.CHUNK):
            with queue_errors(self._redis):
                self._delete(chunk)
            for answer in chunk:
                self._seen.discard(answer.job_id)

    def _read_events(self, block_s: float) -> list[EndedJob]:
        started = time.monotonic()
        stream = keys.batch_events(self._batch_id)
        with self._redis.pipeline(transaction=False) as pipe:
            # Not 1 ms where nobody is to wait: Redis looks at such clients ten times a second only.
            block_ms = max(1, int(block_s * 1000)) if block_s > 0 else None
            pipe.xread({stream: self._position}, count=keys.CHUNK, block=block_ms)
            [reply] = pipe.execute()
        if not reply:
            left_s = block_s - (time.monotonic() - started)
            time.sleep(max(0.0, min(left_s, BUSY_LOOP_GUARD_S)))
            return []
        [(_, entries)] = reply
        self._position = entries[-1][0].decode()
        return [ended for entry_id, fields in entries if (ended := _ended(entry_id, fields)) is not None]

    def _note(self, ended: Iterable[EndedJob]) -> None:
        """Keep those that have not been seen before for whoever polls, now or after an error."""
        self._noted += [item for item in ended if self._seen.add(item.job_id)]

    def _reconcile(self) -> None:
        """Have the ends of jobs that left no event recorded, and read them."""
        for chunk in chunked(self._unseen(), keys.CHUNK):
            record_ends(self._redis, self._batch_id, chunk, read_to=self._position)
            self._note(self._read_events(0.0))

    def _unseen(self) -> Iterator[str]:
        start, jobs = 0, keys.batch_jobs(self._batch_id)
        while job_ids := cast("list[bytes]", self._redis.zrange(jobs, start, start + keys.CHUNK - 1)):
            start += len(job_ids)
            yield from (job_id for item in job_ids if (job_id := item.decode()) not in self._seen)

    def _fetch_chunk(self, chunk: Sequence[EndedJob]) -> list[Answer]:
        streams = [rq_keys.results(item.job_id) for item in chunk]
        values = cast("list[bytes | None]", self._redis.eval(source("answers"), len(streams), *streams))
        answers = {
            item.job_id: Answer(item.job_id, line["custom_id"], item.status, line, item.event_id)
            for item, value in zip(chunk, values, strict=True)
            if (line := _output_line(value)) is not None
        }
        rest = [item for item in chunk if item.job_id not in answers]
        answers |= {answer.job_id: answer for answer in self._made_up(rest)}
        return [answers[item.job_id] for item in chunk]

    def _made_up(self, jobs: Sequence[EndedJob]) -> list[Answer]:
        """The failures of jobs that have no output line."""
        if not jobs:
            return []
        with self._redis.pipeline(transaction=False) as pipe:
            for item in jobs:
                pipe.xrevrange(rq_keys.results(item.job_id), count=1)
                pipe.hget(Job.key_for(item.job_id), "meta")
            replies = replies_to(pipe)
        return [
            answer_of(item, entries or [], meta)
            for item, entries, meta in zip(jobs, replies[::2], replies[1::2], strict=True)
        ]

    def _delete(self, chunk: Sequence[Answer | EndedJob]) -> None:
        job_ids = [answer.job_id for answer in chunk]
        event_ids = [answer.event_id for answer in chunk]
        registries = [
            registry(self._queue, connection=self._redis).key
            for registry in (FinishedJobRegistry, FailedJobRegistry, CanceledJobRegistry)
        ]
        script_keys = [keys.batch_jobs(self._batch_id), keys.batch_events(self._batch_id), *registries]
        script_keys += [*map(Job.key_for, job_ids), *map(rq_keys.results, job_ids)]
        args: list[str | int] = [len(registries), len(job_ids), *job_ids, *event_ids]
        self._redis.eval(source("forget"), len(script_keys), *script_keys, *args)


def chunked(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of `size`, the last one shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _ended(entry_id: bytes, fields: dict[bytes, bytes]) -> EndedJob | None:
    """`None` if a stranger has written the entry."""
    status = _STATUSES.get(fields.get(b"status", b""))
    if status is None or b"job" not in fields:
        return None
    is_lost = fields.get(b"code") == LOST.encode()
    return EndedJob(fields[b"job"].decode(errors="replace"), status, entry_id.decode(), is_lost)


def answer_of(item: EndedJob, entries: Sequence[tuple[bytes, dict[bytes, bytes]]], meta: bytes | None) -> Answer:
    """The answer in the newest of a job's results, or why there is none. `meta` is the job's own."""
    fields = entries[0][1] if entries else {}
    line = _output_line(fields.get(b"return_value"))  # by now there may be one
    if line is None:
        line = failure_line(_made_up_failure(item, fields, meta))
    return Answer(item.job_id, line["custom_id"], item.status, line, item.event_id)


def _output_line(value: bytes | None) -> dict[str, Any] | None:
    """The output line in a return value; `None` where there is none, or a stranger wrote something else."""
    try:
        return decode_output_line(b64decode(value or b""))
    except ValueError:  # not base64
        return None


def _made_up_failure(item: EndedJob, fields: dict[bytes, bytes], meta: bytes | None) -> Failure:
    code, message = _why_without_line(item, fields)
    return Failure(custom_id=_custom_id_in(meta) or item.job_id, request_id=item.job_id, code=code, message=message)


def _custom_id_in(meta: bytes | None) -> str | None:
    """`None` if the custom id is lost with the job's hash, or overwritten; the job id still names the job."""
    try:
        return custom_id_of(msgspec.json.decode(meta or b""))
    except (ValueError, RecursionError):
        return None


def _why_without_line(item: EndedJob, fields: dict[bytes, bytes]) -> tuple[str, str]:
    if item.is_lost:
        return LOST, "The job was deleted from Redis before it had an answer; enqueue the same file again to add it."
    if item.status == "cancelled":
        return "cancelled", "The job was cancelled outside mlxq."
    if b"exc_string" in fields:
        last_words = _last_words(fields[b"exc_string"])
        if any(sign in last_words for sign in _SIGNS_OF_A_CRASH):
            return "worker_crashed", f"The worker gave up the job: {last_words}"
        return "failed_outside", f"The job failed outside mlxq: {last_words}"
    return "result_expired", "The job has ended, but its answer is no longer in Redis."


def _last_words(exc_string: bytes) -> str:
    """The last line of what RQ has written about an error."""
    try:
        lines = zlib.decompress(b64decode(exc_string)).decode().strip().splitlines()
    except (ValueError, zlib.error):
        return "what it says about it can't be read"
    return lines[-1] if lines else "it says nothing about it"
