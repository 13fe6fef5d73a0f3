"""File in, file out: requests go into the queue through a bounded window, answers go to a `Sink` as they end.

Lines are read lazily and collected jobs are deleted from Redis once their lines are on the disk, so neither this
process nor Redis grows with the file. Knows nothing of who answers the jobs, nor of terminals and signals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self, TypeGuard

from mlxq.answers import CHUNK, Answer
from mlxq.batch import Batch
from mlxq.client import Client
from mlxq.errors import InputFileError, QueueError
from mlxq.files import BadLine
from mlxq.openai import ParsedLine, content_hash_of
from mlxq.sink import Sink
from mlxq.tally import Summary, Tally

DEFAULT_MAX_INFLIGHT = 4096
POLL_S = 0.5
"""How long a turn waits for an answer at most: `on_turn` is called about that often."""

OnTurn = Callable[[Tally], bool]
"""Sees the counts after every turn and says whether to go on; what it raises ends the run."""


def process(
    client: Client,
    lines: Iterable[ParsedLine | BadLine],
    output: Path,
    error_file: Path,
    *,
    on_turn: OnTurn,
    max_inflight: int = DEFAULT_MAX_INFLIGHT,
    resume: bool = True,
    ordered: bool = False,
) -> Summary:
    """Have every line answered: each becomes one line of the output file or of the error file.

    When `on_turn` says to stop, or raises, what has ended is kept and the rest of the batch is cancelled; a later
    run over the same files goes on from there. A request that changed under its id is answered again, and its new
    line takes the old one's place.

    Args:
        lines: what `mlxq.files.read_requests` yields.
        max_inflight: requests in the queue at a time; bounds memory here and in Redis.
        resume: skip requests whose answer is in the output file already; otherwise both files start empty.
        ordered: at the end, rewrite the output file in the order of the input. The error file stays as it ended.

    Raises:
        InputFileError: a file can't be read or written.
        QueueUnavailable: Redis can't be reached.
    """
    with Sink(output, error_file, resume=resume) as sink:
        with _Bulk(client.open(), lines, sink, max_inflight) as bulk:
            while on_turn(sink.tally) and not bulk.is_done:
                bulk.turn()
        if ordered and bulk.is_done:
            sink.order_by(bulk.custom_ids)
    return sink.tally.summary(interrupted=not bulk.is_done)


def collect(
    batch: Batch, output: Path, error_file: Path, *, on_turn: OnTurn, follow: bool = False, ordered: bool = False
) -> Summary:
    """Fetch the answers of a batch that somebody submitted; nothing is deleted from Redis.

    Args:
        follow: wait until the batch is done; otherwise take what has ended so far.
        ordered: rewrite the output file in the order of the batch.

    Raises:
        InputFileError: a file can't be written.
        BatchNotFound: the batch is gone.
        QueueUnavailable: Redis can't be reached.
    """
    collector = batch.collector()
    custom_ids: dict[str, str] = {}
    with Sink(output, error_file) as sink:
        is_done = collector.is_done()
        while not is_done:
            ended = collector.poll(POLL_S if follow else 0.0)
            for answer in collector.fetch(ended):
                custom_ids[answer.job_id] = answer.custom_id
                _write_once(sink, answer)
            sink.sync_if_due()
            is_done = collector.is_done()
            if not on_turn(sink.tally) or not (ended or follow):
                break
        if ordered:
            sink.order_by([custom_ids[job_id] for job_id in batch.job_ids() if job_id in custom_ids])
    return sink.tally.summary(interrupted=not is_done)


def _write_once(sink: Sink, answer: Answer) -> None:
    if not sink.skip_if_done(answer.custom_id, content_hash_of(answer.line)):
        sink.write(answer.line)


class _Bulk:
    """One run over one input; leaving it early keeps what has ended and cancels the rest.

    `custom_ids` are those of the lines read so far, in their order.
    """

    def __init__(self, batch: Batch, lines: Iterable[ParsedLine | BadLine], sink: Sink, max_inflight: int) -> None:
        self.custom_ids: list[str] = []
        self._batch = batch
        self._collector = batch.collector()
        self._lines = iter(lines)
        self._sink = sink
        self._max_inflight = max_inflight
        self._refill = min(CHUNK, max(1, max_inflight // 4))
        self._inflight: dict[str, str] = {}  # job id -> custom id
        self._unsynced: list[Answer] = []
        self._input_ended = False
        self._has_batch = False

    @property
    def is_done(self) -> bool:
        return self._input_ended and not self._inflight

    def turn(self) -> None:
        """Fill the window, then take what has ended; waits only when the window has no room."""
        room = self._max_inflight - len(self._inflight)
        can_submit = not self._input_ended and room >= self._refill
        if can_submit:
            self._submit(min(room, CHUNK))
        self._collect(0.0 if can_submit else POLL_S)
        if self._sink.sync_if_due():
            self._forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, QueueError | InputFileError):
            return  # there is no queue to collect from, or no file to collect to
        if not self.is_done:
            self._drain()
        self._sink.sync()
        self._forget()
        if self._inflight:
            self._cancel()

    def _submit(self, count: int) -> None:
        lines = list(islice(self._lines, count))
        self._input_ended = len(lines) < count
        requests = [line for line in lines if self._is_to_run(line)]
        if requests:
            self._batch.add(requests)
            self._has_batch = True
            ids = [line.request.custom_id for line in requests]
            self._inflight.update((self._batch.job_id(custom_id), custom_id) for custom_id in ids)
            self._sink.tally.num_inflight = len(self._inflight)
        if self._input_ended and self._has_batch:
            self._batch.seal()

    def _is_to_run(self, line: ParsedLine | BadLine) -> TypeGuard[ParsedLine]:
        if isinstance(line, BadLine):
            self.custom_ids.append(line.custom_id)
            self._sink.refuse(line)
            return False
        self.custom_ids.append(line.request.custom_id)
        return not self._sink.skip_if_done(line.request.custom_id, line.request.content_hash)

    def _collect(self, block_s: float) -> bool:
        ended = self._collector.poll(block_s)
        for answer in self._collector.fetch(ended):
            # A job may end twice, say when a lost worker comes back; its first answer is on its way to the disk.
            custom_id = self._inflight.pop(answer.job_id, None)
            if custom_id is not None:
                self._sink.write({**answer.line, "custom_id": custom_id})
            self._unsynced.append(answer)
        self._sink.tally.num_inflight = len(self._inflight)
        return bool(ended)

    def _drain(self) -> None:
        while self._collect(0.0):
            pass

    def _forget(self) -> None:
        self._collector.forget(self._unsynced)
        self._unsynced = []

    def _cancel(self) -> None:
        """End what still waits and delete it; rows that are decoding are dropped by their workers."""
        self._batch.cancel()
        while ended := self._collector.poll(0.0):
            self._collector.forget(list(self._collector.fetch(ended)))
