"""Waiting for what must come. No test passes or fails by how fast a machine is: a deadline here tells one that hangs.

What a test says about time it says by clocks that it hands in, or by the order in which things happen.
"""

from __future__ import annotations

import time
from collections.abc import Callable

DEADLINE_S = 300.0
"""Far beyond what anything here takes on a slow and busy machine, and less than what pytest allows one test."""
FOREVER_S = 3600.0
"""For what is to be killed or cancelled: longer than any test lives."""
_POLL_S = 0.01


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Returns once `condition` holds.

    Raises:
        AssertionError: it hasn't for `DEADLINE_S`; `what` says what was waited for.
    """
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S:.0f} s in vain: {what}"
        time.sleep(_POLL_S)
