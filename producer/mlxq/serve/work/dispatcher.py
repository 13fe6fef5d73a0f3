"""Which batches this process works on, and for how long: a thread for each, as long as its lease holds.

Batches that nobody works on are taken up, first those whose key has the fewest at work here, then the oldest; leases
are renewed; what has expired is removed. A batch that something is in the way of is tried again after a pause that
grows. Several processes may do this over the same records and the same Redis. Knows nothing of what is done with a
batch.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from mlxq.errors import FileInUse, InputFileError, MlxqError, QueueUnavailable
from mlxq.files.bulk import LeftToOthers
from mlxq.files.outages import Tell
from mlxq.serve.store.database import Database
from mlxq.serve.store.disk import DataDirectory
from mlxq.serve.work.leases import BatchLeases

logger = logging.getLogger("mlxq.serve")

TURN_S = 0.5
SWEEP_S = 60.0
FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 60.0
END_TIMEOUT_S = 30.0

RunBatch = Callable[[str, Callable[[], bool]], None]
"""Works on the batch with this id until it has ended, as long as the second says that it is ours."""


@dataclass(slots=True)
class _Running:
    """A batch that this process works on."""

    thread: threading.Thread
    is_ours: bool = True


@dataclass(slots=True)
class _Pause:
    """How long a batch that something is in the way of is left alone."""

    length_s: float = 0.0
    until: float = 0.0


@dataclass(slots=True)
class _State:
    running: dict[str, _Running] = field(default_factory=dict)
    pauses: dict[str, _Pause] = field(default_factory=dict)
    renewed_at: float = float("-inf")
    swept_at: float = float("-inf")


class Dispatcher:
    """Works on batches in the background while the `with` block runs; what is not done then is left as it stands.

    Args:
        run_batch: does the work; may raise any error of ours, and `LeftToOthers`.
        lease_s: as that of the leases.
        max_running: batches that are worked on at a time; the others wait.
        tell: hears what is in the way.
    """

    def __init__(
        self,
        database: Database,
        disk: DataDirectory,
        leases: BatchLeases,
        run_batch: RunBatch,
        *,
        lease_s: float,
        max_running: int,
        tell: Tell,
    ) -> None:
        self._database = database
        self._disk = disk
        self._leases = leases
        self._run_batch = run_batch
        self._renew_s = lease_s / 3
        self._max_running = max_running
        self._tell = tell
        self._state = _State()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._loop, name="mlxq-dispatcher", daemon=True)

    def wake(self) -> None:
        """There is a new batch: don't let it wait for the next turn."""
        self._wake.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_stopping = True
        self._wake.set()
        self._thread.join()
        deadline = time.monotonic() + END_TIMEOUT_S
        with self._lock:
            running = dict(self._state.running)
        for entry in running.values():
            entry.thread.join(max(0.0, deadline - time.monotonic()))
        # Of one that hangs the lease runs out, once this process is gone.
        ended = [batch_id for batch_id, entry in running.items() if not entry.thread.is_alive()]
        with suppress(MlxqError):
            self._leases.release(ended)

    def _loop(self) -> None:
        while not self._is_stopping:
            try:
                self._turn(time.monotonic())
            except QueueUnavailable as error:
                self._tell(f"{error}. Batches wait until Redis is back.")
            except MlxqError as error:
                self._tell(f"{error}. Trying again.")
            except Exception:  # a bug must not end the service without a word
                logger.exception("the dispatcher failed; it goes on")
            self._wake.wait(TURN_S)
            self._wake.clear()

    def _turn(self, now: float) -> None:
        self._renew(now)
        self._start_some(now)
        if now - self._state.swept_at >= SWEEP_S:
            self._state.swept_at = now
            self._sweep()

    def _renew(self, now: float) -> None:
        with self._lock:
            running = dict(self._state.running)
        if now - self._state.renewed_at < self._renew_s:
            return
        held = set(self._leases.hold(running))
        self._state.renewed_at = now
        for batch_id, entry in running.items():
            entry.is_ours = entry.is_ours and batch_id in held

    def _start_some(self, now: float) -> None:
        with self._lock:
            running, pauses = set(self._state.running), dict(self._state.pauses)
        owner_of = self._database.open_batches()
        waiting = {
            batch_id: owner
            for batch_id, owner in owner_of.items()
            if batch_id not in running and pauses.get(batch_id, _Pause()).until <= now
        }
        num_running = Counter(owner_of[batch_id] for batch_id in running if batch_id in owner_of)
        room = self._max_running - len(running)
        # One after the other: a lease on what there is no room for would keep it from others.
        while waiting and room > 0:
            batch_id = min(waiting, key=lambda batch_id: num_running[waiting[batch_id]])
            owner = waiting.pop(batch_id)
            if self._leases.hold([batch_id]):
                self._start(batch_id)
                num_running[owner] += 1
                room -= 1

    def _start(self, batch_id: str) -> None:
        thread = threading.Thread(target=self._work, args=(batch_id,), name=f"mlxq-{batch_id}", daemon=True)
        with self._lock:
            self._state.running[batch_id] = _Running(thread)
        thread.start()

    def _work(self, batch_id: str) -> None:
        with self._lock:
            entry = self._state.running[batch_id]
        is_in_the_way = True
        try:
            self._run_batch(batch_id, lambda: entry.is_ours and not self._is_stopping)
            is_in_the_way = False
        except LeftToOthers:
            is_in_the_way = False
        except FileInUse:
            pass  # a process that has lost its lease finishes its last turn
        except MlxqError as error:
            self._tell(f"Batch {batch_id} waits: {str(error).rstrip('.')}.")
        except Exception:  # a bug costs the others nothing
            logger.exception("batch %s failed; it is tried again", batch_id)
        finally:
            self._put_away(batch_id, entry, is_in_the_way)

    def _put_away(self, batch_id: str, entry: _Running, is_in_the_way: bool) -> None:
        if entry.is_ours and not self._is_stopping:
            with suppress(MlxqError):  # it runs out by itself
                self._leases.release([batch_id])
        with self._lock:
            del self._state.running[batch_id]
            if is_in_the_way:
                pause = self._state.pauses.setdefault(batch_id, _Pause())
                pause.length_s = min(MAX_PAUSE_S, 2 * pause.length_s or FIRST_PAUSE_S)
                pause.until = time.monotonic() + pause.length_s
            else:
                self._state.pauses.pop(batch_id, None)
        self._wake.set()

    def _sweep(self) -> None:
        for file_id in self._database.remove_expired(int(time.time())):
            with suppress(InputFileError):  # the next sweep finds it without a record
                self._disk.remove_file(file_id)
        known = self._database.known_ids()
        self._disk.sweep(known.__contains__, self._database.has_ended)
