"""Out of the queue into a file: the answers of a batch that somebody else has submitted.

Deletes nothing from Redis, and knows nothing of who answers, nor of terminals.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mlxq.files.outages import Outages, Tell
from mlxq.files.output.answer_table import AnswerTable, InputRow
from mlxq.files.output.sink import Sink
from mlxq.files.tally import POLL_S, OnTurn, Summary
from mlxq.id_table import IdTable
from mlxq.queue.batch import Batch
from mlxq.results.read_back import content_hash_of
from mlxq.spool import Spool


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
) -> Summary:
    """Fetch the answers of a batch that somebody submitted; nothing is deleted from Redis.

    Args:
        follow: wait until the batch is done; otherwise take what has ended so far.
        ordered: at the end, rewrite the output file in the order of the batch.
        tell: hears that Redis went away, and the collection waits until it is back; without it, that ends it.
        table: at the end, what has been collected is written as this table, too.

    Raises:
        InputFileError: a file can't be written.
        BatchNotFound: the batch is gone.
        QueueUnavailable: Redis can't be reached.
    """
    outages = Outages(tell)
    with Sink(output, error_file) as sink:
        collection = _Collection(batch, sink, follow)
        while on_turn(sink.tally) and not collection.has_ended:
            sink.tally.is_waiting = not outages.attempt(collection.turn)
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

    def __init__(self, batch: Batch, sink: Sink, follow: bool) -> None:
        self.is_done = False
        self.has_ended = False
        self._batch = batch
        # Who doesn't wait is to be told of all that has ended.
        self._collector = batch.collector() if follow else batch.collector(reconcile_s=0.0)
        self._sink = sink
        self._follow = follow
        self._custom_id_of = IdTable()  # by job id

    def turn(self) -> None:
        """Take what has ended; may be repeated after a `QueueUnavailable`."""
        num_before = len(self._custom_id_of)
        for answer in self._collector.next_answers(POLL_S if self._follow else 0.0):
            self._custom_id_of.put(answer.job_id, answer.custom_id)
            if not self._sink.skip_if_done(answer.custom_id, content_hash_of(answer.line)):
                self._sink.write(answer.line)
        self._sink.sync_if_due()
        self.is_done = self._collector.is_done()
        if self.is_done or not (self._follow or len(self._custom_id_of) > num_before):
            self.has_ended = True

    def custom_ids(self) -> Iterator[str]:
        """The ids of what has been collected, in the order of the batch, once it `has_ended`."""
        return (i for i in map(self._custom_id_of.get, self._batch.job_ids()) if i is not None)
