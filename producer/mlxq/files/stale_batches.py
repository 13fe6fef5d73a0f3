"""What a run that was killed, or lost Redis, has left in the queue: finds its batches again, and clears them away.

The ids of all batches that runs into one output file open begin alike. One run at a time can use that file, so
whatever is found under its prefix belongs to nobody any more. Reads and writes no file but through a `Sink`.
"""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

from mlxq.files.output.sink import Sink
from mlxq.machine import MACHINE_ID, machine_id
from mlxq.queue.batch import Batch
from mlxq.queue.client import Client

PREFIX_DIGITS = 8


def batch_prefix(output: Path) -> str | None:
    """How the ids of an output file's batches begin; `None` for a pipe or a device, which many runs may share.

    The machine goes in, since several that share a Redis may use the same path; and not by its name alone, since
    images and containers often share that, too.
    """
    if not output.is_file():
        return None
    place = f"{socket.gethostname()}:{machine_id(MACHINE_ID)}:{output.resolve()}"
    return f"run-{hashlib.sha256(place.encode()).hexdigest()[:PREFIX_DIGITS]}-"


def clear(client: Client, prefix: str, sink: Sink, *, keeps_answers: bool) -> None:
    """Cancel what still waits or runs in the batches under `prefix`, and delete what has ended.

    Args:
        keeps_answers: give the answers that nobody has collected to the sink first.

    Raises:
        InputFileError: an answer can't be written; it is then still in Redis.
        QueueUnavailable: Redis can't be reached.
    """
    for batch_id in client.batch_ids():
        if batch_id.startswith(prefix):
            batch = client.batch(batch_id)
            if next(batch.job_ids(), None) is not None:
                _clear(batch, sink if keeps_answers else None)


def _clear(batch: Batch, sink: Sink | None) -> None:
    batch.cancel()
    collector = batch.collector()
    while answers := list(collector.next_answers(0.0)):
        if sink is not None:
            for answer in answers:
                if answer.status == "finished":  # not one that was cancelled, whose text may be a part
                    sink.adopt(answer.line)
            sink.sync()
        collector.forget(answers)
