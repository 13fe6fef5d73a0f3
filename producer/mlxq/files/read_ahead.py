"""Hands over what a slow source has brought so far: a thread takes its items, and its reader waits only so long.

A pipe may stay open for hours between two lines. Who reads it directly can neither send on what it has nor look after
anything else meanwhile. Knows nothing of what the items are.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

GATHER_S = 0.5
"""How long to wait for more before going on with what is there."""


class ReadAhead(Generic[T]):
    """The items of a source in their order. One thread may read them.

    Args:
        items: read in a thread that ends with the process, if a read never comes back.
        ahead: items that wait to be read, at most.
        weigh: how large an item is; from `max_weight` on no more are read, however few are waiting.
    """

    def __init__(
        self,
        items: Iterable[T],
        ahead: int,
        *,
        weigh: Callable[[T], int] = lambda _: 0,
        max_weight: int = 1,
    ) -> None:
        self._ahead = ahead
        self._weigh = weigh
        self._max_weight = max_weight
        self._weight = 0
        self._waiting: deque[T] = deque()
        self._wanted = ahead
        self._error: BaseException | None = None
        self._source_ended = False
        self._is_closed = False
        self._changed = threading.Condition()
        threading.Thread(target=self._read_source, args=(iter(items),), name="mlxq-input", daemon=True).start()

    def __repr__(self) -> str:
        return f"ReadAhead(waiting={len(self._waiting)} source_ended={self._source_ended})"

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come, not even an error."""
        with self._changed:
            return self._source_ended and not self._waiting and self._error is None

    def read(self, count: int, wait_s: float = GATHER_S) -> list[T]:
        """Up to `count` items: as soon as so many are there, or after `wait_s`, or at the end.

        Raises:
            BaseException: what the source raised, after all items before it were read.
        """
        with self._changed:
            self._wanted = min(count, self._ahead)
            self._changed.wait_for(self._is_enough, wait_s)
            taken = [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]
            self._weight -= sum(map(self._weigh, taken))
            self._changed.notify_all()
            if not taken and self._error is not None:
                error, self._error = self._error, None
                raise error
            return taken

    def close(self) -> None:
        """Read no more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _is_enough(self) -> bool:
        return self._source_ended or len(self._waiting) >= self._wanted or self._weight >= self._max_weight

    def _has_room(self) -> bool:
        return self._is_closed or (len(self._waiting) < self._ahead and self._weight < self._max_weight)

    def _read_source(self, items: Iterator[T]) -> None:
        error: BaseException | None = None
        try:
            for item in items:
                if not self._add(item):
                    break
        except BaseException as raised:  # noqa: BLE001 - whoever reads the items is to hear of it
            error = raised
        with self._changed:
            self._error, self._source_ended = error, True
            self._changed.notify_all()

    def _add(self, item: T) -> bool:
        """Returns whether to go on reading."""
        with self._changed:
            self._changed.wait_for(self._has_room)
            self._waiting.append(item)
            self._weight += self._weigh(item)
            if self._is_enough():  # not for every item: waking a thread costs more than reading a line
                self._changed.notify_all()
            return not self._is_closed
