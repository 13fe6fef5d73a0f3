"""Out of the queue into a file: the answers of a batch that somebody else has submitted.

Deletes from Redis only what is on the disk, if it is told to, and knows nothing of who answers, nor of terminals.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mlxq.files.outages import Outages, Tell
from mlxq.files.output.answer_table import AnswerTable, InputRow
from mlxq.files.output.sink import Sink
from mlxq.files.tally import POLL_S, OnTurn, Summary
from mlxq.queue.batch import Batch
from mlxq.results.answer import Answer
from mlxq.results.read_back import content_hash_of
from mlxq.storage.id_table import IdTable
from mlxq.storage.spool import Spool


def collect(
    batch: Batch,
    output: Path,
    error_file: Path,
    *,
    on_turn: OnTurn,
    follow: bool = False,
    ordered: bool = False,
    tell: Tell | None = None,
    table: AnswerTable | None = None,
    delete: bool = False,
) -> Summary:
    """Fetch the answers of a batch that somebody submitted.

    Args:
        follow: wait until the batch is done; otherwise take what has ended so far.
        ordered: at the end, rewrite the output file in the order of the batch.
        tell: hears that Redis went away, and the collection waits until it is back; without it, that ends it.
        table: at the end, what has been collected is written as this table, too.
        delete: delete from Redis what is on the disk, so that neither memory grows with the batch. Its order goes with
            it, so this can be combined with neither `ordered` nor `table`.

    Raises:
        InputFileError: a file can't be written.
        BatchNotFound: the batch is gone.
        QueueUnavailable: Redis can't be reached.
    """
    outages = Outages(tell)
    with Sink(output, error_file) as sink:
        collection = _Collection(batch, sink, follow, delete)
        while on_turn(sink.tally) and not collection.has_ended:
            sink.tally.is_waiting = not outages.attempt(collection.turn)
        sink.sync()
        outages.attempt(collection.forget)
        if ordered and collection.has_ended:
            sink.order_by(collection.custom_ids())
    if table is not None and collection.has_ended:
        rows = Spool[InputRow](output.parent)
        for custom_id in collection.custom_ids():
            rows.append(InputRow(custom_id, {}))
        table.write(rows, output, error_file)
    return sink.summary(interrupted=not collection.is_done)


class _Collection:
    """One reading of a batch that others answer."""

    def __init__(self, batch: Batch, sink: Sink, follow: bool, delete: bool) -> None:
        self.is_done = False
        self.has_ended = False
        self._batch = batch
        # Who doesn't wait is to be told of all that has ended.
        self._collector = batch.collector() if follow else batch.collector(reconcile_s=0.0)
        self._sink = sink
        self._follow = follow
        self._delete = delete
        self._undeleted: list[Answer] = []
        self._custom_id_of = IdTable()  # by job id
        self._whole = IdTable()  # hashes of requests that have a whole answer by now, by job id
        self._is_announced = not (follow and delete)

    def turn(self) -> None:
        """Take what has ended; may be repeated after a `QueueUnavailable`."""
        if not self._is_announced:
            self._batch.begin_collection()
            self._is_announced = True
        has_news = False
        for answer in self._collector.next_answers(POLL_S if self._follow else 0.0):
            has_news = True
            self._write(answer)
            if self._delete:
                self._undeleted.append(answer)
            else:
                self._custom_id_of.put(answer.job_id, answer.custom_id)
        if self._sink.sync_if_due():
            self.forget()
        self.is_done = self._collector.is_done()
        if self.is_done or not (self._follow or has_news):
            self.has_ended = True

    def forget(self) -> None:
        """Delete from Redis what was synced, if that is wanted."""
        self._collector.forget(self._undeleted)
        self._undeleted = []

    def _write(self, answer: Answer) -> None:
        content_hash = content_hash_of(answer.line)
        if not self._sink.skip_if_done(answer.custom_id, content_hash):
            known = self._known_hash(answer, content_hash) if self._delete else None
            if known is None or (answer.is_complete and known != content_hash):
                self._sink.write(answer.line, replaces=known is not None)

    def _known_hash(self, answer: Answer, content_hash: str | None) -> str | None:
        """The hash of the request to whose whole answer this one comes second, if it does. What was deleted may come
        again: a producer that completes its batch asks for it anew."""
        if answer.is_complete and self._whole.add(answer.job_id, content_hash):
            return None
        known: str | None = self._whole.get(answer.job_id)
        if answer.is_complete:
            self._whole.put(answer.job_id, content_hash)
        return known

    def custom_ids(self) -> Iterator[str]:
        """The ids of what has been collected, in the order of the batch, once it `has_ended`."""
        return (i for i in map(self._custom_id_of.get, self._batch.job_ids()) if i is not None)
