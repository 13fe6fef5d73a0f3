"""What a worker does about keys of the wrong type: has them moved away, and names each in one line of the log.

The scripts make room by themselves for what they write, and leave notes, which are read here; RQ's own code doesn't,
so that the keys of this worker and its queues are looked through now and then, and when Redis has refused one of them.
Knows no job, and no key by its meaning.
"""

from __future__ import annotations

import logging
import time

from redis.exceptions import ResponseError

from mlxq_worker.jobs.store import JobStore
from mlxq_worker.timing import Every

logger = logging.getLogger("rq.worker")

LOOK_S = 1.0
"""Between two looks."""
PAUSE_S = 5.0
"""After a refusal whose key wasn't found."""
SAY_AGAIN_S = 600.0
"""A key that is broken again and again is named this often."""
MAX_TOLD = 1000


class Mending:
    """The broken keys that one worker meets."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._look_timer = Every(LOOK_S)
        self._told: dict[str, float] = {}

    def mend(self) -> bool:
        """Look through all keys. Returns whether there was something to move away."""
        broken = self._store.mend()
        for item in broken:
            self._tell_once(item.key, str(item))
        return any(item.is_moved for item in broken)

    def after(self, error: ResponseError) -> float:
        """Redis has refused a command for the type of a key. Returns the seconds after which to try again."""
        if self.mend():
            return 0.0
        self._tell_once("", f"Redis refuses what this worker asks for, which tries again: {error}")
        return PAUSE_S

    def mend_if_due(self, now: float) -> bool:
        """Do so once a second. `now` is in Unix seconds."""
        return self._look_timer.is_due(now) and self.mend()

    def _tell_once(self, key: str, what: str) -> None:
        now = time.monotonic()
        if now - self._told.get(key, float("-inf")) < SAY_AGAIN_S:
            return
        if len(self._told) >= MAX_TOLD:
            self._told.clear()
        self._told[key] = now
        logger.error("%s", what)
