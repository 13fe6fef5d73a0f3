"""Sits out the times when Redis is away or can't do what it is asked: tries again after pauses that grow up to a limit.

Says so once when such a time begins and once when it is over, however many tries lie between. What is tried must
bear being repeated after it failed halfway. Knows nothing of what that is.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mlxq.errors import QueueNotReady, QueueUnavailable

FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 15.0
NAP_S = 0.5
"""The longest sleep in one call, so that a caller hears of Ctrl-C while it waits."""

Tell = Callable[[str], None]
"""Passes a sentence on to the user."""


class Outages:
    """Redis's absences, one after the other.

    Args:
        tell: hears of each absence; `None` if they are not to be sat out.
        has_been_there: whether Redis has been reached before. Until it has, one that can't be is no absence: its
            address may be wrong. One that answers, and can't do this now, is waited for in any case.
        limit_s: the longest absence to be sat out.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        tell: Tell | None,
        *,
        has_been_there: bool = True,
        limit_s: float = float("inf"),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._tell = tell
        self._has_been_there = has_been_there
        self._limit_s = limit_s
        self._clock = clock
        self._sleep = sleep
        self._pause_s = 0.0
        self._retry_at = 0.0
        self._began_at = 0.0

    def attempt(self, action: Callable[[], None]) -> bool:
        """Do it, or take a nap if it is too early for the next try. Returns whether Redis is there.

        Raises:
            QueueUnavailable: Redis is away, and that is not to be sat out, or not any longer.
        """
        if self._pause_s and (left_s := self._retry_at - self._clock()) > 0:
            self._sleep(min(left_s, NAP_S))
            return False
        try:
            action()
        except QueueUnavailable as error:
            self._has_been_there |= isinstance(error, QueueNotReady)
            if self._tell is None or not self._has_been_there:
                raise
            self._begin_pause(error, self._tell)
            return False
        if self._pause_s and self._tell is not None:
            self._tell("Redis answers again.")
        self._pause_s = 0.0
        self._has_been_there = True
        return True

    def _begin_pause(self, error: QueueUnavailable, tell: Tell) -> None:
        now = self._clock()
        if not self._pause_s:
            self._began_at = now
            until = "it can again" if isinstance(error, QueueNotReady) else "it is back"
            tell(f"{str(error).rstrip('.')}. Waiting until {until}.")
        self._pause_s = min(MAX_PAUSE_S, 2 * self._pause_s or FIRST_PAUSE_S)
        if (left_s := self._began_at + self._limit_s - now) <= 0:
            raise error
        self._pause_s = min(self._pause_s, left_s)
        self._retry_at = now + self._pause_s
