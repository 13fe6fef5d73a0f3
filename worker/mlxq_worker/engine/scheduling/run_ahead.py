"""Decides whether a step starts before the tokens of the one before it have been looked at.

Running ahead hides what Python does between two steps. It costs a row of the batch for one step each time a row does
what nobody could foresee: one that ends by a token is computed once more, and a hypothesis of a beam search, of which
nobody knows what it goes on from, sits a step out. So it pays where answers are long or end at their limits, and not
where most of them are a few words. Plain Python: counts rows, and takes no times.
"""

from __future__ import annotations

MAX_UNFORESEEN = 0.03
"""Of the rows: what running ahead may cost. Where it can be measured, on CPUs, it saves no more than that either."""
_MEMORY = 0.98
"""What each step leaves of what was counted before: the last fifty steps or so decide."""


class RunAhead:
    """An account of what became of the rows of recent steps.

    Args:
        pipelined: true or false decides for good; `None` leaves it to the account.
    """

    def __init__(self, pipelined: bool | None = None) -> None:
        self._pipelined = pipelined
        self._num_rows = 0.0
        self._num_unforeseen = 0.0

    def __repr__(self) -> str:
        share = self._num_unforeseen / self._num_rows if self._num_rows else 0.0
        return f"RunAhead({'ahead' if self.pays else 'in step'}, {share:.1%} unforeseen)"

    @property
    def pays(self) -> bool:
        """Whether to start the next step before this one has been looked at."""
        if self._pipelined is not None:
            return self._pipelined
        return self._num_unforeseen <= MAX_UNFORESEEN * self._num_rows

    def saw(self, num_rows: int, num_unforeseen: int) -> None:
        """So many rows of a step got their tokens; what so many of them do next could only be told from those."""
        self._num_rows = _MEMORY * self._num_rows + num_rows
        self._num_unforeseen = _MEMORY * self._num_unforeseen + num_unforeseen
