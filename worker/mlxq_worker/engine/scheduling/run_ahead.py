"""Decides whether a step starts before the tokens of the one before it have been looked at.

Running ahead hides what Python does between two steps. It costs a row of the batch for one step each time a row does
what nobody could foresee: one that ends by a token is computed once more, and a hypothesis of a beam search, of which
nobody knows what it goes on from, sits a step out. So it pays where such rows are a smaller share than the hidden time
is of a step that hides nothing. On a CPU it is never done: Python and MLX compute on the same cores, and launching
blocks there, so where cores are to spare each layer is computed while Python describes the next one
(`runners/on_cpu/starting`), which computes nothing in vain. Plain Python: counts rows, and is told times.
"""

from __future__ import annotations

_MEMORY = 0.98
"""What each step leaves of what was counted before: the last fifty steps or so decide."""


class RunAhead:
    """An account of what became of the rows of recent steps, and of how long host and device took for them.

    Args:
        pipelined: true or false decides for good; `None` leaves it to the account.
        overlaps: whether the device computes while Python does something else.
    """

    def __init__(self, pipelined: bool | None = None, *, overlaps: bool = True) -> None:
        self._pipelined = pipelined
        self._overlaps = overlaps
        self._num_rows = 0.0
        self._num_unforeseen = 0.0
        self._host_s = 0.0
        self._device_s = 0.0
        self._copy_s = 0.0

    def __repr__(self) -> str:
        share = self._num_unforeseen / self._num_rows if self._num_rows else 0.0
        way = "ahead" if self.pays else "in step"
        return f"RunAhead({way}, {share:.1%} unforeseen, {self._hidden_share:.1%} hidden)"

    @property
    def pays(self) -> bool:
        """Whether to start the next step before this one has been looked at."""
        if self._pipelined is not None:
            return self._pipelined
        return self._overlaps and self._num_unforeseen <= self._hidden_share * self._num_rows

    @property
    def _hidden_share(self) -> float:
        """Of a step that hides nothing, what running ahead hides: the shorter of what host and device do, less what the
        device then has to copy."""
        plain_s = self._host_s + self._device_s
        return (min(self._host_s, self._device_s) - self._copy_s) / plain_s if plain_s else 0.0

    def saw(self, num_rows: int, num_unforeseen: int) -> None:
        """So many rows of a step got their tokens; what so many of them do next could only be told from those."""
        self._num_rows = _MEMORY * self._num_rows + num_rows
        self._num_unforeseen = _MEMORY * self._num_unforeseen + num_unforeseen

    def took(self, host_s: float, wait_s: float, *, was_ahead: bool, copy_s: float = 0.0) -> None:
        """In a step Python was busy for `host_s` and then waited for the device.

        Args:
            was_ahead: whether the device computed in the meantime, so that it took both times together.
            copy_s: what a step that starts while another is being computed has to copy, as time on the device.
        """
        self._host_s = _MEMORY * self._host_s + host_s
        self._device_s = _MEMORY * self._device_s + wait_s + (host_s if was_ahead else 0.0)
        self._copy_s = _MEMORY * self._copy_s + copy_s
