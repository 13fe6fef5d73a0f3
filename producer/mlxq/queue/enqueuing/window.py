"""How much of a batch may be in Redis at a time: so many requests, and so many bytes of them.

Who adds requests knows how many of them are still there, and not which. A queue is worked off from its front, so they
are taken to be the last ones. Asks Redis nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

from mlxq import keys
from mlxq.errors import ConfigError
from mlxq.requests.openai import ParsedLine

REFILLS = 4
"""In so many parts at least a window is filled again as requests are answered."""


class InflightWindow:
    """What is added through it goes in by small parts, each as soon as there is room.

    Args:
        max_requests: as many may be in flight.
        max_bytes: no more are added while those in flight are so long.

    Raises:
        ConfigError: there is no room for a request.
    """

    def __init__(self, max_requests: int, max_bytes: int = keys.DEFAULT_MAX_INFLIGHT_BYTES) -> None:
        if max_requests < 1:
            raise ConfigError(f"max_inflight must be at least 1, not {max_requests}")
        self.max_requests = max_requests
        self._max_bytes = max_bytes
        self._lengths: deque[int] = deque(maxlen=max_requests)  # of the last ones that were added

    def parts(self, lines: Iterable[ParsedLine]) -> Iterator[list[ParsedLine]]:
        """The requests, as many together as a part has; at least one."""
        most, most_bytes = max(1, min(keys.CHUNK, self.max_requests // REFILLS)), self._max_bytes // REFILLS
        part: list[ParsedLine] = []
        num_bytes = 0
        for line in lines:
            part.append(line)
            num_bytes += line.length
            if len(part) == most or num_bytes >= most_bytes:
                yield part
                part, num_bytes = [], 0
        if part:
            yield part

    def has_room(self, part: list[ParsedLine], num_inflight: int) -> bool:
        """Whether these may be added while so many are in flight."""
        newest = islice(reversed(self._lengths), num_inflight)
        return num_inflight + len(part) <= self.max_requests and sum(newest) < self._max_bytes

    def added(self, part: list[ParsedLine]) -> None:
        """They are in flight now."""
        self._lengths.extend(line.length for line in part)
