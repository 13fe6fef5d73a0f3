"""What the two threads of a worker tell each other: frozen values in two queues.

The decode thread (the process's main thread) owns the model and the engine, the I/O thread owns Redis. Both use the
tokenizer, which crosses once, inside `Ready`: a Rust object that encoding and decoding only read. No array ever
crosses. Its rows have the execution id of the job for their request id, new with every claim,
so that a late message about an earlier claim of the same job meets nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

from mlxq.contract import Request, Result
from mlxq.errors import RequestError
from mlxq.metrics.figures import Snapshot
from mlxq_worker.engine.api import RowId, RowPiece, RowResult, RowSpec


class Preparer(Protocol):
    """Between requests and rows: tokenises one way, builds the answer the other way."""

    def prepare(self, request: Request, request_id: str) -> tuple[RowSpec, ...]:
        """The rows of a request: one for each answer, or one for a beam search.

        Raises:
            RequestError: this model can't run the request.
        """

    def finish(
        self,
        request: Request,
        specs: tuple[RowSpec, ...],
        results: tuple[RowResult, ...],
        *,
        request_id: str,
        created: int,
        queue_s: float,
    ) -> Result:
        """The answer to a request all of whose rows have ended: `results` has one for each choice, in order."""

    def streaming(self, request: Request, specs: tuple[RowSpec, ...]) -> tuple[RowSpec, ...]:
        """The rows of a request whose text is to be told while it grows, as far as that can be told from it."""


# --- To the decode thread -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Admit:
    """A job is prepared: decode its rows when it is their turn."""

    specs: tuple[RowSpec, ...]


@dataclass(frozen=True, slots=True)
class Cancel:
    """Somebody wants the rows of a job to end, or they aren't ours any more."""

    row_ids: tuple[RowId, ...]


@dataclass(frozen=True, slots=True)
class StopWorker:
    """End the worker in peace: running rows get their grace. `reason` is for the log."""

    reason: str


@dataclass(frozen=True, slots=True)
class Recycle:
    """This process has done enough: let the running rows end, then make room for a fresh one."""

    reason: str


@dataclass(frozen=True, slots=True)
class Drained:
    """Burst mode: nothing is queued and no job is active."""


@dataclass(frozen=True, slots=True)
class IoFailed:
    """The I/O thread has ended on an error that it can't handle."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Signalled:
    """SIGTERM or SIGINT: the first one stops in peace, the next one at once."""


ToDecode = Admit | Cancel | StopWorker | Recycle | Drained | IoFailed | Signalled

# --- To the I/O thread ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded: claim jobs. `max_num_seqs` is how many rows are decoded at once, `model_name` what answers
    report."""

    preparer: Preparer
    max_num_seqs: int
    model_name: str = ""


@dataclass(frozen=True, slots=True)
class RowEnded:
    """A row has ended by itself, or as it was told to."""

    result: RowResult


@dataclass(frozen=True, slots=True)
class Streamed:
    """Text of rows that go on, for those who read along."""

    pieces: tuple[RowPiece, ...]


@dataclass(frozen=True, slots=True)
class Dropped:
    """Cancelled rows that waited in the engine, as all of their job did: nothing will come of them."""

    row_ids: tuple[RowId, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """The engine won't take this row: it could never run it."""

    row_id: RowId
    error: RequestError


@dataclass(frozen=True, slots=True)
class StepRaised:
    """A step raised and took its batch along: these rows were in it."""

    row_ids: tuple[RowId, ...]
    error: str


@dataclass(frozen=True, slots=True)
class Returned:
    """Rows that the decode thread won't run: back to the queue with them."""

    row_ids: tuple[RowId, ...]


@dataclass(frozen=True, slots=True)
class StopClaiming:
    """Take no more jobs; go on with those that run."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the decode thread has recorded so far, for whoever watches this worker."""

    figures: Snapshot


@dataclass(frozen=True, slots=True)
class Close:
    """Write what has ended, give everything else back, and end."""


ToIo = Ready | RowEnded | Streamed | Dropped | Refused | StepRaised | Returned | StopClaiming | Measured | Close


@dataclass(frozen=True, slots=True)
class Channel:
    """The two queues. Putting is safe in signal handlers."""

    to_decode: SimpleQueue[ToDecode]
    to_io: SimpleQueue[ToIo]

    @classmethod
    def open(cls) -> Channel:
        return cls(SimpleQueue(), SimpleQueue())
