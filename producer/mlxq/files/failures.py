"""Collects what went wrong with requests: each message once, how often it came, and with whom first.

Keeps a bounded number of messages, however many there are. Prints nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_MESSAGES = 1000
MAX_PLACES = 3


@dataclass(frozen=True, slots=True)
class FailureCount:
    """One message: how many requests it is about, and where the first of them are (``line 7``, ``request r7``). The
    message is empty for those of a code that came when there were too many messages already."""

    code: str
    message: str
    count: int
    places: tuple[str, ...]


class Failures:
    """Messages by how often they came."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._places: dict[tuple[str, str], list[str]] = {}

    def add(self, code: str, message: str, place: str) -> None:
        """One more request went wrong."""
        key = (code, message)
        if key not in self._counts and len(self._counts) >= MAX_MESSAGES:
            key = (code, "")
        self._counts[key] = self._counts.get(key, 0) + 1
        places = self._places.setdefault(key, [])
        if len(places) < MAX_PLACES:
            places.append(place)

    def most_common(self) -> tuple[FailureCount, ...]:
        """The most frequent first; of equals the first that came."""
        found = sorted(self._counts.items(), key=lambda item: -item[1])
        return tuple(
            FailureCount(code, message, count, tuple(self._places[code, message])) for (code, message), count in found
        )
