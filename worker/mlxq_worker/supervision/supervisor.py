"""The process that `mlxq worker` is for its user: it keeps the one that decodes alive, and ends it when asked to.

Never imports mlx, so that nothing of a model or a GPU can take it along. The jobs of a dead worker are given back at
once (`dead_workers`); when to start again is `worker_process`'s to decide. The first SIGTERM or SIGINT is passed on
once, so that running rows get their grace; the second one too, and the worker gives everything back at once.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from types import FrameType

from mlxq_worker.supervision.dead_workers import DeadWorkers
from mlxq_worker.supervision.totals import Totals
from mlxq_worker.supervision.worker_process import WorkerProcess

logger = logging.getLogger("mlxq.supervisor")

POLL_S = 0.1
STOP_MARGIN_S = 20.0
"""Beyond the grace period, for writing what has ended to a slow Redis. A worker that still lives then hangs."""


def turn_until_done(
    turn: Callable[[float], bool],
    on_signal: Callable[[int, FrameType | None], None],
    sleep: Callable[[float], object],
) -> None:
    """Take turns until one says that there is nothing more to do; SIGINT and SIGTERM go to `on_signal` meanwhile."""
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not turn(time.monotonic()):
            sleep(POLL_S)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Supervisor:
    """Looks after one worker process until it is done or somebody asks it to stop.

    Args:
        process: not started yet; whoever gives it ends it.
        grace_s: how long the worker may take to stop after the first signal.
        totals: hears that we look around; `None` if nobody watches us.
    """

    def __init__(
        self, process: WorkerProcess, dead_workers: DeadWorkers, grace_s: float, totals: Totals | None = None
    ) -> None:
        self._process = process
        self._dead_workers = dead_workers
        self._grace_s = grace_s
        self._totals = totals
        self._num_signals = 0
        self._num_passed_on = 0
        self._deadline = float("inf")

    def run(self, sleep: Callable[[float], object] = time.sleep) -> None:
        """Returns once the worker has ended in peace, or was asked to end.

        Raises:
            WorkerFailed: it can't work, or dies whenever it starts.
        """
        turn_until_done(self.turn, self._on_signal, sleep)

    def turn(self, now: float) -> bool:
        """One iteration; returns whether there is nothing more to look after."""
        if self._totals is not None:
            self._totals.turned()
        if self._num_signals:
            return self._stop(now)
        self._dead_workers.release_if_due(now)
        return self._process.check(now)

    def request_stop(self) -> None:
        self._num_signals += 1

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        self.request_stop()

    def _stop(self, now: float) -> bool:
        """Pass on what has not been passed on yet, and wait."""
        if self._num_passed_on == 0:
            self._deadline = now + self._grace_s + STOP_MARGIN_S
        if self._num_passed_on < self._num_signals:  # one a turn: two at once would arrive as one
            self._process.send(signal.SIGTERM)
            self._num_passed_on += 1
        if now >= self._deadline and self._process.is_running:
            logger.error("The worker doesn't end: killing it")
            self._process.send(signal.SIGKILL)
            self._deadline = float("inf")
        return not self._process.is_running
