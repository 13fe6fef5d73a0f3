"""File in, file out: requests go into the queue through a bounded window, answers go to a `Sink` as they end.

Lines are read lazily and collected jobs are deleted from Redis once their lines are on the disk, so neither this
process nor Redis grows with the file. Knows nothing of who answers the jobs, nor of terminals and signals.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import nullcontext, suppress
from functools import partial
from itertools import repeat
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeGuard

from mlxq import keys
from mlxq.errors import BatchNotFound, InputFileError, QueueError, QueueUnavailable
from mlxq.files.input import BadLine
from mlxq.files.known_lines import KnownBlock, KnownLines
from mlxq.files.outages import Outages, Tell
from mlxq.files.output.answer_table import AnswerTable, InputRow, input_row
from mlxq.files.output.continuation import going_on, joined_line
from mlxq.files.output.retry import Retry
from mlxq.files.output.same_model import Expected
from mlxq.files.output.sink import Sink
from mlxq.files.read_ahead import ReadAhead
from mlxq.files.stale_batches import batch_prefix, clear
from mlxq.files.tally import POLL_S, OnTurn, Summary
from mlxq.queue.batch import Batch
from mlxq.queue.client import Client
from mlxq.requests.openai import ParsedLine
from mlxq.results.answer import Answer
from mlxq.results.result_lines import retried_line
from mlxq.storage.spool import Spool

DEFAULT_MAX_INFLIGHT = keys.DEFAULT_MAX_INFLIGHT
DEFAULT_MAX_INFLIGHT_BYTES = keys.DEFAULT_MAX_INFLIGHT_BYTES
MAX_AHEAD_BYTES = 16 * 2**20
"""Of the lines that are read ahead; at least one is."""


InputItem = ParsedLine | BadLine | KnownBlock


class LeftToOthers(Exception):
    """What `on_turn` raises to end a run that another will go on with: its requests stay in the queue."""


def process(
    client: Client,
    lines: Iterable[InputItem],
    output: Path,
    error_file: Path,
    *,
    on_turn: OnTurn,
    max_inflight: int = DEFAULT_MAX_INFLIGHT,
    max_inflight_bytes: int = DEFAULT_MAX_INFLIGHT_BYTES,
    resume: bool = True,
    ordered: bool = False,
    tell: Tell | None = None,
    source: str | None = None,
    default_max_tokens: int | None = None,
    sampling_defaults: Mapping[str, float] | None = None,
    batch_id: str | None = None,
    table: AnswerTable | None = None,
    retry: Retry | None = None,
    expected: Expected | None = None,
    known: KnownLines | None = None,
) -> Summary:
    """Have every line answered: each becomes one line of the output file or of the error file.

    When `on_turn` says to stop, or raises, what has ended is kept and the rest of the batch is cancelled; a later
    run over the same files goes on from there. What a killed run left in the queue is cleared away first, and its
    answers are kept unless the output file is gone. A request that changed under its id, or whose answer was cut off,
    is answered again, and its new line takes the old one's place.

    Args:
        lines: what `mlxq.files.input.read_requests` yields, or `read_unknown` with `known`.
        max_inflight: requests in the queue at a time.
        max_inflight_bytes: no more are added while those in the queue were so long in the input; with `max_inflight` it
            bounds memory here and in Redis.
        resume: skip requests whose answer is in the output file already; otherwise both files start empty.
        ordered: at the end, rewrite the output file in the order of the input. The error file stays as it ended.
        tell: hears that Redis went away, and the run waits until it is back; without it, that ends the run. Redis
            must be there at the start.
        source: a name for the input, as of `mlxq.files.paths.source_name`; failures of an earlier run over it that are
            of none of its requests any more are removed.
        default_max_tokens: the limit of a request that sets none, if all workers have the same: an answer that kept to
            another is to something else.
        sampling_defaults: likewise, what the model's own defaults fill in of a request that leaves it out.
        batch_id: of the batch that all runs over this input and into this output file go on with: requests that an
            earlier one has left in the queue are not cancelled, their answers and failures are taken as they come.
        table: at the end, and only if the run comes to it, the answers are written as this table, too.
        retry: which whole answers are asked for again.
        expected: the model whose answers are to be gone on from; any, if none is expected.
        known: learns the lines that the output file has the answers to, before lines are read.

    Raises:
        InputFileError: a file can't be read or written.
        ConfigError: the output file holds answers by another model, or by one with other end tokens than now.
        QueueUnavailable: Redis can't be reached.
        QueueError: somebody has cancelled the batch `batch_id`.
    """
    outages = Outages(tell, has_been_there=False)
    keeps_answers = resume and output.exists()
    with Sink(
        output,
        error_file,
        resume=resume,
        source=source,
        default_max_tokens=default_max_tokens,
        sampling_defaults=sampling_defaults,
        retry=retry,
        expected=expected,
        known=known,
    ) as sink:
        prefix = batch_prefix(output)
        batch = client.open(batch_id, prefix=prefix)
        left: set[str] = set()
        prepare: Callable[[], None] | None = None
        if batch_id is not None:
            prepare = partial(_note_left, batch, left)
        elif prefix is not None:
            prepare = partial(clear, client, prefix, sink, keeps_answers=keeps_answers)
        while prepare is not None and not outages.attempt(prepare):
            sink.tally.is_waiting = True
            if not on_turn(sink.tally):
                return sink.summary(interrupted=True)
        rows = Spool[InputRow](output.parent) if ordered or table else None
        with _Bulk(batch, lines, sink, max_inflight, max_inflight_bytes, tell, left, rows) as bulk:
            while on_turn(sink.tally) and not bulk.is_done:
                sink.tally.is_waiting = not outages.attempt(bulk.turn)
            while bulk.is_done and not outages.attempt(bulk.clear_up):
                sink.tally.is_waiting = True
                if not on_turn(sink.tally):
                    break
        if bulk.is_done:
            sink.settle_source()
        if rows is not None and ordered and bulk.is_done:
            sink.order_by(row.custom_id for row in rows)
    if rows is not None and table is not None and bulk.is_done:
        table.write(rows, output, error_file)
    return sink.summary(interrupted=not bulk.is_done)


def _num_bytes(line: InputItem) -> int:
    return 0 if isinstance(line, BadLine) else line.num_bytes


def _whole(part: Mapping[str, Any], content_hash: str, rest: Mapping[str, Any]) -> dict[str, Any]:
    return joined_line(part, rest, content_hash)


def _note_left(batch: Batch, left: set[str]) -> None:
    """Note the jobs that an earlier run into the same file has left in the batch."""
    left.update(batch.job_ids())


class _Bulk:
    """One run over one input; leaving it early keeps what has ended and cancels the rest.

    Args:
        left: the jobs that the batch had before, of requests that are yet to be read.
        rows: takes what of the lines is needed at the end, in their order.
    """

    def __init__(
        self,
        batch: Batch,
        lines: Iterable[InputItem],
        sink: Sink,
        max_inflight: int,
        max_inflight_bytes: int,
        tell: Tell | None,
        left: set[str],
        rows: Spool[InputRow] | None,
    ) -> None:
        self._rows = rows
        self._batch = batch
        self._left = left
        self._written_early: set[str] = set()  # job ids, of lines that are yet to be read
        self._has_unclaimed = False
        self._collector = batch.collector()
        self._lines = ReadAhead(
            lines,
            ahead=min(keys.CHUNK, max_inflight),
            weigh=_num_bytes,
            max_weight=min(MAX_AHEAD_BYTES, max_inflight_bytes),
        )
        self._sink = sink
        self._max_inflight = max_inflight
        self._max_inflight_bytes = max_inflight_bytes
        self._inflight_bytes = 0
        self._tell = tell
        self._refill = min(keys.CHUNK, max(1, max_inflight // 4))
        self._inflight: dict[str, ParsedLine] = {}  # by job id
        # Of those that ask for something else than their line: makes the answer one to the line.
        self._made_whole: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {}
        self._unsynced: list[Answer] = []
        self._input_ended = False
        self._has_batch = False
        self._has_left = False
        self._is_unsure = False  # whether all that is in flight has reached Redis, and Redis still has it

    @property
    def is_done(self) -> bool:
        return self._input_ended and not self._inflight

    def turn(self) -> None:
        """Fill the window, then take what has ended; waits only when the window has no room or the input no line.

        May be repeated after a `QueueUnavailable`: it goes on where it was. Then it takes what has ended out of Redis,
        which may be full and go on because of that, and puts back into the queue what Redis has lost.
        """
        if self._is_unsure:
            self._keep()
            self._enqueue_lost()
        self._is_unsure = True
        room = self._max_inflight - len(self._inflight)
        has_room = room >= self._refill and self._inflight_bytes < self._max_inflight_bytes
        can_submit = not self._input_ended and has_room
        if can_submit:
            self._submit(min(room, keys.CHUNK))
        self._collect(0.0 if can_submit else POLL_S)
        if self._sink.sync_if_due():
            self._forget()
        self._is_unsure = False

    def clear_up(self) -> None:
        """Leave nothing of a run that is done in Redis. May be repeated after a `QueueUnavailable`."""
        self._leave(keeps=True)
        self._has_left = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lines.close()
        if self._has_left or isinstance(error, QueueUnavailable | LeftToOthers):
            return  # the next run into the same file clears the queue, or goes on with what is there
        with suppress(QueueUnavailable) if error else nullcontext():  # the first error is the one to hear of
            self._leave(keeps=not isinstance(error, QueueError | InputFileError))

    def _leave(self, keeps: bool) -> None:
        """Cancel what still waits, whatever goes wrong; rows that are decoding are dropped by their workers.

        With `keeps` what has ended is written down before, and what the cancelling ended is deleted. Otherwise, with
        a full disk for example, answers stay in Redis: the next run into the same file takes them over.
        """
        try:
            if keeps:
                self._keep()
        finally:
            if self._inflight or self._left:
                self._cancel()
        if keeps:
            self._clear()

    def _submit(self, count: int) -> None:
        lines = self._lines.read(count)
        self._input_ended = self._lines.has_ended
        requests = [self._as_asked(line) for line in lines if self._is_to_run(line)]
        # Before they are queued, since they are read only once.
        self._inflight.update((self._batch.job_id(line.request.custom_id), line) for line in requests)
        self._inflight_bytes += sum(map(_num_bytes, requests))
        self._left.difference_update(self._inflight)
        self._sink.tally.num_inflight = len(self._inflight)
        self._enqueue(requests)

    def _enqueue_lost(self) -> None:
        had_batch = self._has_batch  # or the first of it may never have arrived
        num_lost = self._enqueue(self._inflight.values())
        if num_lost and had_batch and self._tell is not None:
            self._tell(f"Redis came back without {num_lost:,} of the requests; they are in the queue again.")

    def _enqueue(self, requests: Collection[ParsedLine]) -> int:
        """Returns how many Redis didn't have."""
        num_added = self._batch.add(requests) if requests else 0
        self._has_batch |= bool(requests)
        if self._input_ended and self._has_batch:
            self._batch.seal()
        return num_added

    def _is_to_run(self, line: InputItem) -> TypeGuard[ParsedLine]:
        if isinstance(line, KnownBlock):
            self._skip(line)
            return False
        if self._rows is not None:
            self._rows.append(input_row(line))
        if isinstance(line, BadLine):
            self._sink.refuse(line)
            return False
        self._sink.tally.drop(line.dropped)
        job_id = self._batch.job_id(line.request.custom_id)
        if job_id in self._written_early:
            self._written_early.remove(job_id)
            return False
        return not self._sink.skip_request(line)

    def _skip(self, block: KnownBlock) -> None:
        self._sink.skip_block(block)
        if self._rows is not None:
            for custom_id, kept in zip(block.custom_ids, block.kept or repeat({}), strict=False):
                self._rows.append(InputRow(custom_id, kept))
        if self._written_early:
            self._written_early.difference_update(map(self._batch.job_id, block.custom_ids))

    def _as_asked(self, line: ParsedLine) -> ParsedLine:
        """The line itself, or one with a larger limit, or for the rest of an answer; what comes of those will be made
        an answer to the line itself."""
        custom_id, content_hash = line.request.custom_id, line.request.content_hash
        if (part := self._sink.part_of(custom_id)) is not None:
            self._made_whole[self._batch.job_id(custom_id)] = partial(_whole, part, content_hash)
            return going_on(line, part)
        limit = self._sink.limit_of_retry(custom_id)
        if limit is None:
            return line
        self._made_whole[self._batch.job_id(custom_id)] = partial(
            retried_line, content_hash=content_hash, max_tokens=limit
        )
        return line.with_max_tokens(limit)

    def _collect(self, block_s: float) -> bool:
        """Write what has ended. Returns whether anything has."""
        num_before = len(self._unsynced)
        for answer in self._collector.next_answers(block_s):
            self._write(answer)
            self._unsynced.append(answer)
        self._sink.tally.num_inflight = len(self._inflight)
        has_ended = len(self._unsynced) > num_before
        if self._has_unclaimed:
            self._sink.sync()
            self._forget()
        return has_ended

    def _write(self, answer: Answer) -> None:
        # A job may end twice, say when a lost worker comes back; its first answer is on its way to the disk.
        line = self._inflight.pop(answer.job_id, None)
        if line is not None:
            self._inflight_bytes -= line.num_bytes
            output = {**answer.line, "custom_id": line.request.custom_id}
            made_whole = self._made_whole.pop(answer.job_id, dict)
            self._sink.write(made_whole(output), mark=line.mark)
        elif answer.job_id in self._left:
            self._left.remove(answer.job_id)
            self._write_early(answer)

    def _write_early(self, answer: Answer) -> None:
        """Write the answer to a request that an earlier run has asked, and that this one has yet to read."""
        if self._sink.adopt(answer.line):  # counted when its line is read
            return
        if answer.job_id == self._batch.job_id(answer.custom_id):
            self._sink.write(answer.line)
            self._written_early.add(answer.job_id)
        else:  # what is left of the job doesn't say whose it was: its line will ask again
            self._has_unclaimed = True  # once it is forgotten, which must not come after that

    def _keep(self) -> None:
        while not self.is_done and self._collect(0.0):
            pass
        self._sink.sync()
        self._forget()

    def _forget(self) -> None:
        self._collector.forget(self._unsynced)
        self._unsynced = []
        self._has_unclaimed = False

    def _cancel(self) -> None:
        with suppress(BatchNotFound):  # nothing of it had reached Redis yet
            self._batch.cancel()

    def _clear(self) -> None:
        while answers := list(self._collector.next_answers(0.0)):
            for answer in answers:
                if answer.status == "finished":
                    self._write(answer)
            self._sink.sync()
            self._collector.forget(answers)
