"""One batch from where it stands to its end, or to where somebody else goes on with it.

What has been done is in the record and in the result files at every moment, so a run may be killed anywhere: the next
one begins with the step that the record names. One process at a time is at a batch, by a lock on the disk. The queue's
part is `mlxq.files.bulk`'s, the files' is
`mlxq.serve.work.results`'s. Knows nothing of leases but that this one may be lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from mlxq.errors import BatchNotFound, QueueError, QueueUnavailable
from mlxq.files import bulk
from mlxq.files.bulk import LeftToOthers
from mlxq.files.input import BadLine
from mlxq.files.outages import Tell
from mlxq.files.tally import Tally
from mlxq.queue.client import Client
from mlxq.requests.openai import ParsedLine
from mlxq.serve.store.database import Database
from mlxq.serve.store.disk import DataDirectory
from mlxq.serve.store.records import ENDED, BatchRecord, Counts, FileRecord, Outcome, Status, TokenUsage
from mlxq.serve.work.inspection import Inspection, batch_lines, inspect
from mlxq.serve.work.results import CANCELLED, EXPIRED, Reason, settle

LOOK_S = 0.5
"""How often a batch that is being answered is looked at in the records, and its counts are written there."""
DEFAULT_MAX_INFLIGHT = 1024
"""Fewer than in a run of its own: whoever comes later waits behind all that others have queued."""
_REASONS: dict[Outcome, Reason | None] = {"completed": None, "expired": EXPIRED, "cancelled": CANCELLED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What holds for every batch. `max_inflight` are the requests of one that are queued at a time, about
    `max_inflight_bytes` long together."""

    max_inflight: int = DEFAULT_MAX_INFLIGHT
    max_inflight_bytes: int = 16 * 2**20
    max_requests: int = 500_000
    allow_unknown: bool = False


class BatchRun:
    """One process's turn at one batch.

    Args:
        is_ours: asked often; from its first no on, nothing is changed any more.
        tell: hears that Redis went away, which the run waits out.
        clock: Unix seconds.
    """

    def __init__(
        self,
        batch_id: str,
        database: Database,
        disk: DataDirectory,
        client: Client,
        rules: Rules,
        *,
        is_ours: Callable[[], bool],
        tell: Tell,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._id = batch_id
        self._database = database
        self._disk = disk
        self._client = client
        self._rules = rules
        self._is_ours = is_ours
        self._tell = tell
        self._clock = clock
        self._looked_at = float("-inf")

    def run(self) -> None:
        """Go on until the batch has ended.

        Raises:
            LeftToOthers: it isn't ours any more.
            FileInUse: another process is still at it, though it has lost the batch.
            MlxqError: something is in the way that may pass: a full disk, a Redis that is gone; run again later.
        """
        if self._record().status in ENDED:
            return
        with self._disk.work_on(self._id):
            self._go_on()

    def _go_on(self) -> None:
        while (record := self._record()).status not in ENDED:
            self._check_ours()
            if record.outcome is not None:
                self._hand_over(record)
            elif record.in_progress_at is not None:
                self._answer(record)
            elif record.status == "cancelling":
                self._decide("cancelled", Counts(), None)
            else:
                self._inspect(record)

    def _inspect(self, record: BatchRecord) -> None:
        def check() -> None:
            self._check_ours()
            if self._record().status == "cancelling":
                raise _Cancelled

        with suppress(_Cancelled):
            found = inspect(
                self._disk.batch_input(self._id),
                name=record.input_name,
                endpoint=record.endpoint,
                max_requests=self._rules.max_requests,
                allow_unknown=self._rules.allow_unknown,
                check=check,
            )
            self._change(lambda before: _inspected(before, found, self._now()))
            if found.errors:
                self._disk.end_batch(self._id)

    def _answer(self, record: BatchRecord) -> None:
        """Have the lines answered, or stop that, until every line has an outcome."""
        ends_as: Outcome = "completed"

        def on_turn(tally: Tally) -> bool:
            nonlocal ends_as
            self._check_ours()
            if time.monotonic() - self._looked_at >= LOOK_S:
                now = self._record()
                if now.status == "cancelling":
                    ends_as = "cancelled"
                elif self._clock() >= now.expires_at:
                    ends_as = "expired"
                self._note_progress(tally, now)
                self._looked_at = time.monotonic()
            return ends_as == "completed"

        output, errors = self._disk.batch_output(self._id), self._disk.batch_errors(self._id)
        try:
            summary = bulk.process(
                self._client,
                self._lines(),
                output,
                errors,
                on_turn=on_turn,
                max_inflight=self._rules.max_inflight,
                max_inflight_bytes=self._rules.max_inflight_bytes,
                tell=self._tell,
                batch_id=self._id,
            )
        except QueueUnavailable:
            raise
        except QueueError:
            # By `mlxq cancel`, say: then the batch takes no more requests.
            if not self._is_cancelled_in_queue():
                raise
            self._change(lambda before: cancelling(before, self._now()))
            self._looked_at = float("-inf")
            return
        if summary.interrupted:
            self._cancel_in_queue()
        reason = _REASONS[ends_as]
        results = settle(output, errors, batch_id=self._id, lines=self._lines() if reason else (), reason=reason)
        self._check_ours()
        self._decide(ends_as, results.counts(record.counts.total), results.usage)

    def _decide(self, outcome: Outcome, counts: Counts, usage: TokenUsage | None) -> None:
        """Every line has its outcome: say how the batch will end."""

        def change(record: BatchRecord) -> BatchRecord | None:
            if record.outcome is not None:
                return None
            # Who asked to cancel is told so, even where that came too late.
            ends_as: Outcome = "cancelled" if record.status == "cancelling" else outcome
            status: Status = "cancelling" if record.status == "cancelling" else "finalizing"
            return msgspec.structs.replace(
                record, outcome=ends_as, status=status, finalizing_at=self._now(), counts=counts, usage=usage
            )

        self._change(change)

    def _hand_over(self, record: BatchRecord) -> None:
        """Make the result files files of the key's."""
        now = self._now()
        files = []
        for path, file_id, kind in (
            (self._disk.batch_output(self._id), record.output_id, "output"),
            (self._disk.batch_errors(self._id), record.error_id, "error"),
        ):
            if (num_bytes := self._disk.hand_over(path, file_id)) is not None:
                files.append(
                    FileRecord(
                        id=file_id,
                        owner=record.owner,
                        purpose="batch_output",
                        filename=f"{self._id}_{kind}.jsonl",
                        num_bytes=num_bytes,
                        created_at=now,
                        expires_at=None if record.output_ttl_s is None else now + record.output_ttl_s,
                    )
                )
        self._clear_queue()
        self._change(lambda before: _ended(before, {file.id for file in files}, now), tuple(files))
        self._disk.end_batch(self._id)

    def _note_progress(self, tally: Tally, record: BatchRecord) -> None:
        completed = tally.skipped + tally.succeeded + tally.cut
        counts = Counts(total=record.counts.total, completed=completed, failed=tally.failed + tally.cancelled)
        # An earlier process may have counted more than this one has read again yet.
        if counts.completed + counts.failed > record.counts.completed + record.counts.failed:
            self._change(lambda before: msgspec.structs.replace(before, counts=counts))

    def _lines(self) -> Iterator[ParsedLine | BadLine]:
        return batch_lines(self._disk.batch_input(self._id), self._rules.allow_unknown)

    def _is_cancelled_in_queue(self) -> bool:
        try:
            return self._client.batch(self._id).counts().cancelled
        except BatchNotFound:
            return False

    def _cancel_in_queue(self) -> None:
        with suppress(BatchNotFound):  # nothing of it had reached Redis
            self._client.batch(self._id).cancel()

    def _clear_queue(self) -> None:
        """Nobody needs the batch in Redis any more. Where rows are still being dropped it goes by its lifetime."""
        with suppress(QueueError):
            self._client.batch(self._id).delete()

    def _check_ours(self) -> None:
        if not self._is_ours():
            raise LeftToOthers

    def _change(
        self, change: Callable[[BatchRecord], BatchRecord | None], new_files: tuple[FileRecord, ...] = ()
    ) -> None:
        self._check_ours()
        self._database.change_batch(self._id, change, new_files)

    def _record(self) -> BatchRecord:
        record = self._database.batch(self._id)
        if record is None:
            raise KeyError(self._id)
        return record

    def _now(self) -> int:
        return int(self._clock())


def cancelling(record: BatchRecord, now: int) -> BatchRecord | None:
    """The record of a batch that somebody wants no more; `None` where that changes nothing: it ends or has ended."""
    if record.status not in ("validating", "in_progress"):
        return None
    return msgspec.structs.replace(record, status="cancelling", cancelling_at=now)


def _inspected(record: BatchRecord, found: Inspection, now: int) -> BatchRecord | None:
    if record.status != "validating":
        return None
    if found.errors:
        return msgspec.structs.replace(record, status="failed", failed_at=now, errors=found.errors)
    counts = Counts(total=found.num_requests)
    return msgspec.structs.replace(record, status="in_progress", in_progress_at=now, counts=counts)


def _ended(record: BatchRecord, file_ids: Collection[str], now: int) -> BatchRecord | None:
    if record.status in ENDED:
        return None
    has_output, has_errors = record.output_id in file_ids, record.error_id in file_ids
    ended = msgspec.structs.replace(record, has_output=has_output, has_errors=has_errors)
    match record.outcome:
        case "expired":
            return msgspec.structs.replace(ended, status="expired", expired_at=now)
        case "cancelled":
            return msgspec.structs.replace(ended, status="cancelled", cancelled_at=now)
        case _:
            return msgspec.structs.replace(ended, status="completed", completed_at=now)


class _Cancelled(Exception):
    """The batch was cancelled while its input was looked at."""
