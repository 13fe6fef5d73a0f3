"""Who waits for which answer: one thread reads from Redis for all of them, and hands each what is theirs.

Nobody waits for ever: not for a worker that isn't there, nor in a line that doesn't move, nor for a Redis that is away.
Whoever goes has their job cancelled. Knows no HTTP, and no wire format.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from mlxq.errors import QueueError
from mlxq.queue.client import Client
from mlxq.queue.live.live_queue import Growth, LiveQueue
from mlxq.requests.openai import ParsedLine

logger = logging.getLogger("mlxq.serve")

BLOCK_S = 0.05
"""At most so much later than the first news of a new request may come."""
LOOK_S = 0.5
"""Between two looks at requests of which nothing has come."""
LOOKS_IN_VAIN = 10
"""Before a request whose job has ended, or is gone, and that has no answer counts as lost."""
KEEP_S = 1.0
"""For how long it is taken for known which models there are."""
PAUSE_S = 0.2
"""Before Redis is asked again, when it is away."""


_OPEN_STATES = frozenset({"queued", "started"})


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitLimits:
    """How long a live request waits: for a worker where there is none, in line, and for a Redis that is away."""

    no_worker_s: float = 10.0
    in_line_s: float = 300.0
    no_redis_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer, as its output line."""

    line: dict[str, Any]


@dataclass(frozen=True, slots=True)
class GivenUp:
    """There will be no answer: why, in a sentence and a word, and after how long another try may go better."""

    message: str
    code: str
    retry_after_s: int | None = None


News = Growth | Ended | GivenUp


@dataclass(slots=True, eq=False)
class Waiter:
    """Somebody who waits, until it `is_over`: nothing more will be handed over. `news` belongs to the event loop."""

    owner: str
    loop: asyncio.AbstractEventLoop
    job_id: str = field(default_factory=lambda: f"live-{secrets.token_hex(16)}")
    news: asyncio.Queue[News] = field(default_factory=asyncio.Queue)
    position: str | None = None
    since: float = 0.0
    num_looks_in_vain: int = 0
    is_over: bool = False
    has_answer: bool = False

    def hand_over(self, news: News) -> None:
        """From the desk's thread."""
        self.has_answer |= isinstance(news, Ended)
        self.is_over |= not isinstance(news, Growth)
        try:
            self.loop.call_soon_threadsafe(self.news.put_nowait, news)
        except RuntimeError:  # the loop is closed: nobody waits any more
            logger.debug("Nobody waits for %s any more", self.job_id)


class Desk:
    """All who wait, while the `with` block runs.

    Args:
        max_waiting: how many requests of one owner are taken at a time.
        clock: seconds, for how long somebody has waited.
    """

    def __init__(
        self,
        client: Client,
        *,
        max_waiting: int,
        wait_limits: WaitLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._queue = LiveQueue(client.redis, client.queue)
        self.wait_limits = wait_limits or WaitLimits()
        self.max_waiting = max_waiting
        self._clock = clock
        self._lock = threading.Condition()
        self._waiters: dict[str, Waiter] = {}
        self._left: list[Waiter] = []
        self._num_of: Counter[str] = Counter()
        self._is_closing = False
        self._away_since: float | None = None
        self._looked_at = 0.0
        self._models: tuple[float, list[str]] = (float("-inf"), [])
        self._thread = threading.Thread(target=self._work, name="mlxq-live")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._is_closing = True
            self._lock.notify()
        self._thread.join()

    @property
    def num_waiting(self) -> int:
        """How many requests of all owners there are."""
        return self._num_of.total()

    def take_place(self, owner: str) -> bool:
        """Ask for a place among the owner's requests, which is given back by `give_place_back`; `False` if all are
        taken."""
        with self._lock:
            if self._num_of[owner] >= self.max_waiting:
                return False
            self._num_of[owner] += 1
            return True

    def give_place_back(self, owner: str) -> None:
        """The request is over."""
        with self._lock:
            self._num_of[owner] -= 1
            if not self._num_of[owner]:
                del self._num_of[owner]

    def models(self) -> list[str]:
        """What the queue's workers answer with.

        Raises:
            QueueUnavailable: Redis can't be reached.
        """
        asked_at, names = self._models
        if not names or self._clock() - asked_at >= KEEP_S:
            names = self._queue.models()
            self._models = (self._clock(), names)
        return names

    def enter(self, waiter: Waiter, line: ParsedLine, *, is_streamed: bool) -> None:
        """Put a request in line. Once it is there, `leave` has to be called, whatever becomes of it.

        Raises:
            QueueUnavailable: Redis can't be reached; if the request is in line all the same, it ends there in time.
        """
        waiter.position = "0-0" if is_streamed else None
        waiter.since = self._clock()
        self._queue.enqueue(waiter.job_id, line, is_streamed=is_streamed, wait_s=self.wait_limits.in_line_s + 60)
        with self._lock:
            self._waiters[waiter.job_id] = waiter
            self._lock.notify()

    def leave(self, waiter: Waiter) -> None:
        """Nobody waits for this one any more. Never blocks: what is to be done in Redis comes soon."""
        with self._lock:
            self._waiters.pop(waiter.job_id, None)
            self._left.append(waiter)
            self._lock.notify()

    def _work(self) -> None:
        while self._wait_for_work():
            try:
                self._clean_up()
                self._read()
                self._look_if_due()
            except QueueError as error:
                self._wait_for_redis(error)
            except Exception:  # whatever it is, others wait, too
                logger.exception("Live requests couldn't be looked after; trying again")
                time.sleep(PAUSE_S)
            else:
                self._away_since = None
        with self._lock:
            self._left += self._waiters.values()
        try:
            self._clean_up()
        except QueueError as error:
            logger.warning("Live requests that nobody waits for are left in the queue: %s", error)

    def _wait_for_work(self) -> bool:
        """Returns `False` once it is time to end."""
        with self._lock:
            while not (self._waiters or self._left or self._is_closing):
                self._lock.wait()
            return not self._is_closing

    def _clean_up(self) -> None:
        with self._lock:
            left = list(self._left)
        self._queue.cancel([waiter.job_id for waiter in left if not waiter.has_answer])
        self._queue.forget([waiter.job_id for waiter in left if waiter.has_answer])
        with self._lock:
            self._left = [waiter for waiter in self._left if waiter not in left]

    def _read(self) -> None:
        waiters = self._who_waits()
        if not waiters:
            return
        news = self._queue.read({job_id: waiter.position for job_id, waiter in waiters.items()}, BLOCK_S)
        for job_id, position in news.positions.items():
            waiters[job_id].position = position
            for growth in news.growth[job_id]:
                waiters[job_id].hand_over(growth)
        for job_id, line in news.lines.items():
            waiters[job_id].hand_over(Ended(line))

    def _look_if_due(self) -> None:
        """Look after those that may wait in vain."""
        now = self._clock()
        if 0 <= now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        waiters = self._who_waits()
        states = self._queue.states(waiters)
        limits, has_worker = self.wait_limits, None
        for job_id, waiter in waiters.items():
            waited_s = now - waiter.since
            if states[job_id] not in _OPEN_STATES:
                waiter.num_looks_in_vain += 1  # its answer should be there, or will be in a moment
                if waiter.num_looks_in_vain >= LOOKS_IN_VAIN:
                    waiter.hand_over(GivenUp("The request was deleted, or ended outside mlxq.", "job_lost"))
            elif states[job_id] == "queued" and waited_s > min(
                self.wait_limits.no_worker_s, self.wait_limits.in_line_s
            ):
                has_worker = bool(self._queue.models()) if has_worker is None else has_worker
                if not has_worker:
                    self._give_up(waiter, "no_worker", "No worker is there to answer", waited_s)
                elif waited_s > limits.in_line_s:
                    self._give_up(waiter, "overloaded", "No worker has had room for this request", waited_s)

    def _who_waits(self) -> dict[str, Waiter]:
        with self._lock:
            return {job_id: waiter for job_id, waiter in self._waiters.items() if not waiter.is_over}

    def _wait_for_redis(self, error: QueueError) -> None:
        """Redis is away: what waits may still be answered when it is back."""
        now = self._clock()
        if self._away_since is None:
            self._away_since = now
            logger.warning("Live requests wait for Redis: %s", error)
        elif now - self._away_since > self.wait_limits.no_redis_s:
            for waiter in self._who_waits().values():
                self._give_up(waiter, "unavailable", "The server's queue is away", now - self._away_since)
        time.sleep(PAUSE_S)

    def _give_up(self, waiter: Waiter, code: str, what: str, waited_s: float) -> None:
        seconds = max(1, round(self.wait_limits.no_worker_s))
        waiter.hand_over(GivenUp(f"{what}: tried for {waited_s:.0f} s; try again later.", code, seconds))
