"""Remembers which batches somebody asked to cancel, so that a claim asks Redis only about batches that are new.

Knows nothing of what is done about it.
"""

from __future__ import annotations

from mlxq_worker.jobs.store import JobStore


class CancelledBatches:
    """The batches that are known to be cancelled."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._live: set[str] = set()
        self._cancelled: set[str] = set()

    def __contains__(self, batch: str | None) -> bool:
        return batch in self._cancelled

    def look_at(self, batches: set[str]) -> None:
        """Ask about all of these; what is known of other live ones is forgotten.

        Raises:
            redis.exceptions.RedisError: nothing new is known.
        """
        self._live.clear()
        self.look_at_new(batches)

    def look_at_new(self, batches: set[str]) -> None:
        """Ask about those of which nothing is known.

        Raises:
            redis.exceptions.RedisError: nothing new is known.
        """
        if unknown := batches - self._live - self._cancelled:
            cancelled = self._store.cancelled_batches(unknown)
            self._cancelled |= cancelled  # for good: nobody takes a cancellation back
            self._live |= unknown - cancelled
