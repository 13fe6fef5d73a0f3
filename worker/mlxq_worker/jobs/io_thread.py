"""The thread that owns Redis: receives messages, gives the consumer its turns, and sits out Redis's absences.

While Redis is away, or can't do what it is asked (`mlxq.passing`), the decode thread goes on, and what ends is
kept. An error that no waiting can cure goes to the decode thread, which then ends the worker.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from queue import Empty
from threading import Thread

from redis.exceptions import RedisError, ResponseError

from mlxq.logs import fields
from mlxq.passing import is_denial, is_refusal, passes
from mlxq.queue.broken_keys import is_wrong_type
from mlxq_worker import exits
from mlxq_worker.jobs.consumer import Consumer
from mlxq_worker.messages import Channel, Close, IoFailed, Measured, StopWorker, ToIo
from mlxq_worker.metrics.job_figures import JobFigures
from mlxq_worker.metrics.report import Reporter
from mlxq_worker.processes import ParentWatch
from mlxq_worker.step_watch import StepWatch

logger = logging.getLogger("rq.worker")

MAX_BACKOFF_S = 10.0

_LEFT_BEHIND = "the jobs go back to the queue when their leases run out"


class IoThread(Thread):
    """Runs a `Consumer`. Ends on `Close`, or with an `IoFailed` to the decode thread.

    Args:
        watch: sees whether the decode thread hangs; leases would be extended for ever then.
        parent: sees whether the process is gone without which the worker is to stop.
        figures: those that the consumer records, too.
        reports_fd: a pipe through which they are told, ours to close; `None` if nobody wants them.
        lease_s: Redis is tried several times within one, so that leases outlive the last pause before it is back.
        first_backoff_s: the pause after a first try that failed; each one in a row doubles it.
        close_s: no try to write what is left starts later than that after `Close`.
        close_timeout_s: for the thread to end, the last of those tries included.
    """

    def __init__(
        self,
        consumer: Consumer,
        channel: Channel,
        watch: StepWatch,
        *,
        parent: ParentWatch | None = None,
        figures: JobFigures | None = None,
        reports_fd: int | None = None,
        lease_s: float = float("inf"),
        first_backoff_s: float = 0.2,
        close_s: float = 5.0,
        close_timeout_s: float = 15.0,
    ) -> None:
        super().__init__(name="mlxq-io", daemon=True)
        self._consumer = consumer
        self._channel = channel
        self._watch = watch
        self._parent = parent
        self._figures = figures or JobFigures()
        self._reporter = Reporter(reports_fd, lambda: self._figures.snapshot(consumer.num_active))
        self._first_backoff_s = first_backoff_s
        self._max_backoff_s = min(MAX_BACKOFF_S, lease_s / 4)
        self._close_s = close_s
        self._close_timeout_s = close_timeout_s
        self._backoff_s = 0.0
        self._away_since = 0.0
        self._next_try = 0.0
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001  the decode thread raises it again
            if is_denial(error):
                self._give_back()
            self._error = error
            self._channel.to_decode.put(IoFailed(error))

    def close(self) -> None:
        """Tell the thread to end and wait for it. For the decode thread, which reads no messages any more.

        Raises:
            BaseException: what the thread has ended on, maybe only now.
        """
        self._channel.to_io.put(Close())
        self.join(self._close_timeout_s)
        if self.is_alive():
            logger.error("Redis has kept us waiting for %.0f s: %s", self._close_timeout_s, _LEFT_BEHIND)
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        wait_s = 0.0
        while not self._receive(wait_s):
            self._watch_parent()
            self._watch_steps()
            wait_s = self._turn_when_due()
            self._reporter.report_if_due(time.monotonic())
        self._close()
        self._reporter.close()

    def _turn_when_due(self) -> float:
        """Returns how many seconds to wait for the next turn. A message ends that wait, but not the one for Redis:
        while that is away, one comes for every row that ends."""
        if (left_s := self._next_try - time.monotonic()) > 0:
            return left_s
        turned = self._attempt(self._turn)
        return self._backoff_s if turned is None else turned

    def _turn(self) -> float:
        now = time.time()
        if self._backoff_s:
            self._consumer.reconnected(now, time.monotonic() - self._away_since)
        try:
            return self._consumer.turn(now)
        except ResponseError as error:
            if not is_wrong_type(error):
                raise
            return self._consumer.mend(error)

    def _receive(self, wait_s: float) -> bool:
        """Take in all messages, waiting for the first one. Returns whether it is time to close."""
        try:
            message: ToIo = self._channel.to_io.get(block=wait_s > 0, timeout=wait_s or None)
            while True:
                if isinstance(message, Close):
                    return True
                if isinstance(message, Measured):
                    self._reporter.hear(message.figures)
                self._consumer.receive(message, time.time())
                message = self._channel.to_io.get_nowait()
        except Empty:
            return False

    def _attempt(self, action: Callable[[], float]) -> float | None:
        """What the action returns, or `None` and a longer wait before the next try if Redis is away."""
        began = time.monotonic()
        try:
            result = action()
        except RedisError as error:
            if not passes(error):
                raise
            if not self._backoff_s:
                self._away_since = began
            self._backoff_s = min(self._max_backoff_s, 2 * self._backoff_s or self._first_backoff_s)
            self._next_try = time.monotonic() + self._backoff_s
            self._figures.redis_failed()
            what = "can't do this now" if is_refusal(error) else "doesn't answer"
            pause_s = self._backoff_s
            logger.warning("Redis %s, next try in %.1f s: %s", what, pause_s, error, extra=fields(pause_s=pause_s))
            return None
        if self._backoff_s:
            logger.info("Redis answers again")
        self._backoff_s = 0.0
        self._figures.redis_answers()
        return result

    def _close(self) -> None:
        last_try = time.monotonic() + self._close_s
        self._backoff_s = 0.0  # the pauses begin anew: that Redis is there again for a moment will do
        while self._attempt(self._close_consumer) is None:
            if time.monotonic() + self._backoff_s > last_try:
                logger.error("Redis is away: %s", _LEFT_BEHIND)
                return
            time.sleep(self._backoff_s)

    def _close_consumer(self) -> float:
        self._consumer.close(time.time())
        return 0.0

    def _give_back(self) -> None:
        """As far as Redis still allows it: that it doesn't allow all is no job's fault."""
        try:
            self._consumer.surrender(time.time())
        except RedisError as error:
            logger.error("Redis doesn't take the jobs back, either: %s", error)

    def _watch_parent(self) -> None:
        if self._parent is not None and self._parent.is_gone():
            self._channel.to_decode.put(StopWorker("the parent process is gone"))
            self._parent = None

    def _watch_steps(self) -> None:
        if self._watch.is_stuck(time.monotonic()):
            logger.critical("No token has come for %.0f s: ending at once; %s", self._watch.timeout_s, _LEFT_BEHIND)
            os._exit(exits.STUCK)  # nothing gentler ends a thread that hangs in the driver
