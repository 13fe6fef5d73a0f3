"""One batch of requests in the queue: add to it, count it, wait for it, cancel it.

A job's id follows from the batch id and the request's custom id, so adding the same lines again completes a batch
instead of doubling it. Sees requests as already parsed lines and answers as output lines; runs nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import NamedTuple, cast

from redis import Redis
from rq.queue import Queue
from rq.serializers import JSONSerializer

from mlxq import keys
from mlxq.errors import BatchNotFound, ConfigError, QueueError, RequestError
from mlxq.queue.answers import RECONCILE_S, Collector, EndedJob, chunked
from mlxq.queue.broken_keys import kinds_of_batch, naming
from mlxq.queue.cancel import ask_to_cancel, end_queued, stop_running, take_out
from mlxq.queue.connect import queue_errors, replies_to
from mlxq.queue.counts import BatchCounts, warn_if_no_worker
from mlxq.queue.enqueuing.batch_writer import BatchWriter
from mlxq.queue.enqueuing.job_data import NewJob, content_hashes
from mlxq.queue.enqueuing.window import InflightWindow
from mlxq.queue.reconcile import num_open
from mlxq.queue.scripts import source
from mlxq.requests.openai import ParsedLine
from mlxq.requests.submission import RequestLike, as_requests
from mlxq.results.answer import Answer, Completed

logger = logging.getLogger("mlxq")

RATE_SAMPLE = 200
"""Ended jobs over which `Batch.rate` is measured."""
POLL_S = 1.0
ROOM_POLL_S = 0.1
COLLECTOR_S = 30.0
"""A producer that has had no room for so long, though nearly all is answered, says for whom it waits."""


class _InFlight(NamedTuple):
    """Requests of a batch that have no answer, and answers that somebody is to take out of Redis."""

    num_open: int
    num_uncollected: int


class Batch:
    """One batch. Build it with `Client.submit`, `Client.open` or `Client.batch`."""

    def __init__(
        self,
        connection: Redis,
        batch_id: str,
        queue: str,
        *,
        reconcile_s: float = RECONCILE_S,
        about: Mapping[str, str] | None = None,
    ) -> None:
        self.id = batch_id
        self.queue = queue
        self._redis = connection
        self._reconcile_s = reconcile_s
        self._rq_queue = Queue(queue, connection=connection, serializer=JSONSerializer)
        self._next_index = 0
        self._window: InflightWindow | None = None
        self._writer = BatchWriter(connection, batch_id, queue, about or {})

    def __repr__(self) -> str:
        return f"Batch({self.id!r}, queue={self.queue!r})"

    def job_id(self, custom_id: str) -> str:
        """The id of the job that answers this request."""
        return keys.job_id(self.id, custom_id)

    def job_ids(self) -> Iterator[str]:
        """The ids of the jobs that are in the batch, in the order of the input."""
        start = 0
        while job_ids := self._job_ids_from(start):
            start += len(job_ids)
            yield from (job_id.decode() for job_id in job_ids)

    def add(self, lines: Iterable[RequestLike], *, chat: bool = False, max_inflight: int | None = None) -> int:
        """Enqueue requests and return how many were added: a custom id that the batch has is enqueued again only if
        its job was deleted, or its answer has expired.

        A list is checked as a whole before anything is enqueued; any other iterable is read lazily, a chunk at a time.
        Every chunk is written atomically.

        Args:
            lines: what `mlxq.request` builds, objects as they would stand on an input line, or the texts of prompts.
            chat: make plain text a chat message rather than a bare prompt.
            max_inflight: wait with the next chunk while the batch would have more requests without an answer than that,
                or has 256 MiB of them. Where `mlxq collect --follow --delete` takes answers out of Redis, those that it
                has yet to take count, too.

        Raises:
            RequestError: a request can't be accepted, or has the id of an earlier one; the message has its number. Or
                the batch has its id with other content. Whole chunks before it are enqueued.
            QueueUnavailable: Redis can't be reached; add the same lines again to complete the batch.
            QueueError: the batch is cancelled, or in another queue.
            ConfigError: `max_inflight` leaves no room for a request.
        """
        requests = as_requests(lines, chat=chat)
        if max_inflight is None:
            return sum(map(self._add_new, chunked(requests, keys.CHUNK)))
        window = self._window_of(max_inflight)
        num_added = 0
        for part in window.parts(requests):
            self._wait_for_room(window, part)
            num_added += self._add_new(part)
            window.added(part)
        return num_added

    def changed(self, lines: Iterable[ParsedLine]) -> list[str]:
        """The custom ids of those requests that the batch has with other content, so that they can't be added.

        Raises:
            QueueUnavailable: Redis can't be reached.
        """
        return [custom_id for chunk in chunked(lines, keys.CHUNK) for custom_id in self._changed_in(chunk)]

    def seal(self) -> None:
        """Say that everything is enqueued, so that `as_completed` and `wait` come to an end."""
        self._writer.seal()

    def begin_collection(self) -> None:
        """Say that answers are deleted from Redis as they come from now on. Whoever adds requests with a `max_inflight`
        then has those count, too, that are yet to be deleted.

        Raises:
            BatchNotFound: the batch is gone.
        """
        with queue_errors(self._redis), naming(self._redis, kinds_of_batch(self.id)):
            if not self._redis.eval(source("set_flag"), 1, keys.batch(self.id), "collected"):
                raise self._not_found()

    def counts(self) -> BatchCounts:
        """The batch's counts as of now. Counts jobs that RQ's own tools ended or deleted before.

        Raises:
            BatchNotFound: the batch is gone.
        """
        with queue_errors(self._redis):
            most_open = num_open(self._redis, self.queue)  # first: what ends in between is missed by neither
            counts = self._read_counts()
            if counts.total - counts.num_ended > most_open:
                collector = self.collector(reconcile_s=0.0)
                while collector.poll(0.0):
                    pass
                counts = self._read_counts()
        return counts

    def rate(self) -> float:
        """Answers per second, among the last 200 jobs that ended until now by Redis's clock; 0 if there are none."""
        with queue_errors(self._redis), self._redis.pipeline(transaction=False) as pipe:
            pipe.xrevrange(keys.batch_events(self.id), count=RATE_SAMPLE)
            pipe.time()
            entries, (now_s, now_us) = pipe.execute()
        if not entries:
            return 0.0
        oldest_ms = int(entries[-1][0].split(b"-")[0])
        age_ms: int = now_s * 1000 + now_us // 1000 - oldest_ms
        num_answered: int = sum(fields.get(b"status") == b"finished" for _, fields in entries)
        return num_answered * 1000 / max(1, age_ms)

    def collector(self, *, reconcile_s: float | None = None) -> Collector:
        """A reader of the batch from its first ended job on, for callers that keep their own loop.

        Args:
            reconcile_s: see `Collector`; by default the client's.
        """
        wait_s = self._reconcile_s if reconcile_s is None else reconcile_s
        return Collector(self._redis, self.id, self.queue, reconcile_s=wait_s)

    def as_completed(self, timeout_s: float | None = None, *, forget: bool = False) -> Completed:
        """The answers in the order in which jobs end, each job once, until the batch is sealed and done: ``for`` or
        ``async for``. Logs a warning when it waits and no worker serves the queue.

        Args:
            forget: delete each answer from Redis once the next one is asked for. Who breaks off may be told of the last
                one again by another `as_completed`, and never misses one.

        Raises:
            TimeoutError: the batch wasn't done after `timeout_s`.
            BatchNotFound: the batch is gone.
            QueueUnavailable: Redis can't be reached.
        """
        return Completed(self._answers(timeout_s, forget))

    def __iter__(self) -> Completed:
        return self.as_completed()

    def __aiter__(self) -> Completed:
        return self.as_completed()

    def wait(self, timeout_s: float | None = None) -> BatchCounts:
        """Wait for the end of the batch without fetching answers. Raises what `as_completed` raises."""
        for _ in self._until_done(self.collector(), timeout_s):
            pass
        return self.counts()

    def delete(self) -> None:
        """Delete the batch with all its answers from Redis.

        Raises:
            BatchNotFound: the batch is gone.
            QueueError: some of its requests have no answer yet; cancel it first.
        """
        counts = self.counts()
        if counts.num_ended < counts.total:
            num_open = counts.total - counts.num_ended
            raise QueueError(f"batch {self.id!r} has {num_open:,} requests that wait or run; cancel it first")
        collector = self.collector(reconcile_s=0.0)
        while ended := collector.poll(0.0):
            collector.forget(ended)
        with queue_errors(self._redis), self._redis.pipeline() as pipe:
            pipe.unlink(keys.batch(self.id), keys.batch_jobs(self.id), keys.batch_events(self.id))
            pipe.zrem(keys.BATCHES, self.id)
            pipe.execute()

    def answer(self, custom_id: str | int) -> Answer | None:
        """The answer to one request; `None` as long as it has not ended, and if the batch has no such request. An id
        may be a number here as where it was submitted."""
        return self.answers([custom_id]).get(str(custom_id))

    def answers(self, custom_ids: Iterable[str | int]) -> dict[str, Answer]:
        """The answers to these requests by their ids, of those that have ended by now, without waiting.

        Raises:
            QueueUnavailable: Redis can't be reached.
            ConfigError: it is one id instead of several.
        """
        if isinstance(custom_ids, str):
            raise ConfigError("several ids are expected: put a single one into a list, or ask for its answer")
        job_ids = {self.job_id(custom_id): custom_id for custom_id in map(str, custom_ids)}
        return {job_ids[answer.job_id]: answer for answer in self.collector().look_up(job_ids)}

    def cancel(self) -> int:
        """Cancel the batch and return how many waiting jobs were ended at once. One that is done stays as it is.

        Rows that are decoding are dropped by their workers, which keep the partial text. Cancelling twice is fine.

        Raises:
            BatchNotFound: the batch is gone.
        """
        with queue_errors(self._redis), naming(self._redis, kinds_of_batch(self.id)):
            if self._read_counts().is_done:
                return 0
            if not ask_to_cancel(self._redis, self.id):
                raise self._not_found()
            take_out(self._redis, self.queue, self.id)
            return sum(
                self._end_queued(chunk, "batch_cancelled", "The batch was cancelled before this job started.")
                for chunk in chunked(self.job_ids(), keys.CHUNK)
            )

    def cancel_job(self, job_id: str) -> bool:
        """Cancel one job: end it if it waits, have its worker drop it if it runs. `False` if it has already ended."""
        with queue_errors(self._redis):
            if self._end_queued([job_id], "cancelled", "The job was cancelled before it started."):
                self._rq_queue.remove(job_id)
                return True
            return stop_running(self._redis, self.queue, job_id)

    def _read_counts(self) -> BatchCounts:
        with naming(self._redis, kinds_of_batch(self.id)):
            fields = cast("dict[bytes, bytes]", self._redis.hgetall(keys.batch(self.id)))
        if not fields:
            raise self._not_found()
        return BatchCounts.read(self.id, fields)

    def _job_ids_from(self, start: int) -> list[bytes]:
        with queue_errors(self._redis):
            return cast("list[bytes]", self._redis.zrange(keys.batch_jobs(self.id), start, start + keys.CHUNK - 1))

    def _until_done(self, collector: Collector, timeout_s: float | None) -> Iterator[list[EndedJob]]:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        has_warned = False
        while not collector.is_done():
            left_s = POLL_S if deadline is None else deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"batch {self.id!r} wasn't done after {timeout_s} s")
            ended = collector.poll(min(POLL_S, left_s))
            if not ended and not has_warned:
                warn_if_no_worker(self._redis, self.queue)
                has_warned = True
            yield ended

    def _answers(self, timeout_s: float | None, forget: bool) -> Generator[Answer]:
        collector = self.collector()
        read: list[Answer] = []  # and done with: the next one was asked for
        try:
            for ended in self._until_done(collector, timeout_s):
                for answer in collector.fetch(ended):
                    yield answer
                    read.append(answer)
                    if forget and len(read) >= keys.CHUNK:
                        collector.forget(read)
                        read.clear()
                if not forget:
                    read.clear()
        finally:
            if forget:
                collector.forget(read)

    def _window_of(self, max_inflight: int) -> InflightWindow:
        """The one through which the batch was added to before, if it was as wide."""
        if self._window is None or self._window.max_requests != max_inflight:
            self._window = InflightWindow(max_inflight)
        return self._window

    def _add_new(self, chunk: list[ParsedLine]) -> int:
        if changed := self.changed(chunk):
            raise self._has_other(changed[0])
        return self._add_chunk(chunk)

    def _wait_for_room(self, window: InflightWindow, part: list[ParsedLine]) -> None:
        """Until these may be in flight, too."""
        began, has_warned = time.monotonic(), set[str]()
        while not window.has_room(part, sum(left := self._in_flight())):
            if "worker" not in has_warned:
                warn_if_no_worker(self._redis, self.queue)
                has_warned.add("worker")
            has_waited_long = time.monotonic() - began >= COLLECTOR_S
            if has_waited_long and window.has_room(part, left.num_open) and "collector" not in has_warned:
                what = f"{left.num_uncollected:,} answers of batch {self.id!r} are yet to be collected"
                logger.warning("%s; waiting for that: mlxq collect %s --follow --delete", what, self.id)
                has_warned.add("collector")
            time.sleep(ROOM_POLL_S)

    def _in_flight(self) -> _InFlight:
        try:
            counts = self.counts()
        except BatchNotFound:  # nothing of it is there yet
            return _InFlight(0, 0)
        if counts.cancelled:  # which is for `add` to say
            return _InFlight(0, 0)
        num_open = counts.total - counts.num_ended
        with queue_errors(self._redis), self._redis.pipeline(transaction=False) as pipe:
            pipe.hget(keys.batch(self.id), "collected")
            pipe.zcard(keys.batch_jobs(self.id))
            is_collected, num_jobs = pipe.execute()
        return _InFlight(num_open, max(0, num_jobs - num_open) if is_collected == b"1" else 0)

    def _changed_in(self, lines: list[ParsedLine]) -> Iterator[str]:
        requests = {self.job_id(line.request.custom_id): line.request for line in lines}
        with queue_errors(self._redis), self._redis.pipeline(transaction=False) as pipe:
            pipe.zmscore(keys.batch_jobs(self.id), list(requests))
            [scores] = replies_to(pipe)  # none if the key holds something else; adding moves that away
            known = [
                job_id
                for job_id, score in zip(requests, scores or [None] * len(requests), strict=True)
                if score is not None
            ]
            hashes = content_hashes(self._redis, known)
        for job_id, content_hash in zip(known, hashes, strict=True):
            if content_hash not in (None, requests[job_id].content_hash):
                yield requests[job_id].custom_id

    def _add_chunk(self, lines: list[ParsedLine]) -> int:
        jobs: dict[str, NewJob] = {}
        for index, line in enumerate(lines, self._next_index):
            job_id = self.job_id(line.request.custom_id)
            jobs.setdefault(job_id, NewJob(job_id, index, line.request.custom_id, line.payload))
        num_added = self._writer.add(jobs)
        self._next_index += len(lines)
        return num_added

    def _end_queued(self, job_ids: list[str], code: str, message: str) -> int:
        return end_queued(self._redis, self.queue, self.id, job_ids, code=code, message=message)

    def _has_other(self, custom_id: str) -> RequestError:
        message = f"batch {self.id!r} has a request with the custom_id {custom_id!r} already, and other content"
        return RequestError(message, param="custom_id", code="duplicate_custom_id")

    def _not_found(self) -> BatchNotFound:
        return BatchNotFound(f"there is no batch {self.id!r} in this Redis")
