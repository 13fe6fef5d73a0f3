"""How long a command waits for a Redis that is away or can't do what it is asked, and what it says meanwhile.

A Redis that isn't there at all when the command begins is not waited for: its address may be wrong. Knows nothing of
what is asked of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mlxq.cli.terminal import tell
from mlxq.files.outages import Outages

T = TypeVar("T")

ANSWER_S = 60.0
"""For commands whose user sits there and waits for the answer."""


class Patience:
    """Asks again until Redis can; the notes about it go to stderr.

    Args:
        limit_s: the longest absence to be waited for; without one, as long as it takes.
    """

    def __init__(self, limit_s: float = float("inf")) -> None:
        self._outages = Outages(tell, has_been_there=False, limit_s=limit_s)

    def __call__(self, action: Callable[[], T]) -> T:
        """What the action returns. It must bear being repeated after it failed halfway.

        Raises:
            QueueUnavailable: Redis wasn't there at all, or is away for too long.
        """
        results: list[T] = []
        while not self._outages.attempt(lambda: results.append(action())):
            pass
        return results[-1]
