"""How a worker comes to its end: one value, and the table of what leads from where to where.

Starts, stops and logs nothing, and reads no clock: whoever owns the value asks it. Times are seconds on the monotonic
clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from mlxq_worker import exits


class Phase(Enum):
    """Where a worker is between its first row and its last."""

    RUNNING = "running"
    DRAINED = "drained"
    """A burst is over: no more rows come."""
    RECYCLING = "recycling"
    """Rows in the engine take the time they need; then a fresh process is to go on."""
    EVACUATING = "evacuating"
    """The same, but they get no more than their grace."""
    STOPPING = "stopping"
    """Told to end by a message: rows in the engine get their grace."""
    INTERRUPTED = "interrupted"
    """The same by a signal, so that one more means it."""
    CLOSING = "closing"
    """Everything goes back to the queue at once."""

    @property
    def admits(self) -> bool:
        """Whether rows may still enter the engine."""
        return self in (Phase.RUNNING, Phase.DRAINED)

    @property
    def has_grace(self) -> bool:
        """Whether rows in the engine have no more than their grace."""
        return self in (Phase.EVACUATING, Phase.STOPPING, Phase.INTERRUPTED)


class Event(Enum):
    """What can happen to a worker that bears on its end."""

    DRAIN = "drain"
    """Nothing is queued any more, and nothing is claimed."""
    RECYCLE = "recycle"
    """This process has done enough."""
    EVACUATE = "evacuate"
    """This process takes so much memory that it has to go soon."""
    STOP = "stop"
    """Somebody asks the worker to end, but not by a signal."""
    SIGNAL = "signal"
    """SIGTERM or SIGINT."""


TRANSITIONS: Mapping[tuple[Phase, Event], Phase] = {
    (Phase.RUNNING, Event.DRAIN): Phase.DRAINED,
    (Phase.RUNNING, Event.RECYCLE): Phase.RECYCLING,
    (Phase.RUNNING, Event.EVACUATE): Phase.EVACUATING,
    (Phase.RUNNING, Event.STOP): Phase.STOPPING,
    (Phase.RUNNING, Event.SIGNAL): Phase.INTERRUPTED,
    (Phase.DRAINED, Event.RECYCLE): Phase.RECYCLING,
    (Phase.DRAINED, Event.EVACUATE): Phase.EVACUATING,
    (Phase.DRAINED, Event.STOP): Phase.STOPPING,
    (Phase.DRAINED, Event.SIGNAL): Phase.INTERRUPTED,
    (Phase.RECYCLING, Event.EVACUATE): Phase.EVACUATING,
    (Phase.RECYCLING, Event.STOP): Phase.STOPPING,
    (Phase.RECYCLING, Event.SIGNAL): Phase.INTERRUPTED,
    (Phase.EVACUATING, Event.STOP): Phase.STOPPING,
    (Phase.EVACUATING, Event.SIGNAL): Phase.INTERRUPTED,
    (Phase.STOPPING, Event.SIGNAL): Phase.INTERRUPTED,
    (Phase.INTERRUPTED, Event.SIGNAL): Phase.CLOSING,
}
"""Every other pair changes nothing."""


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """`reason` is what led to the phase, for the log; `deadline` is when the grace of the rows in the engine ends."""

    phase: Phase = Phase.RUNNING
    reason: str = ""
    deadline: float = float("inf")

    def after(self, event: Event, reason: str = "") -> Lifecycle:
        """What the worker is once this has happened: the same, if it makes no difference any more."""
        phase = TRANSITIONS.get((self.phase, event), self.phase)
        return self if phase is self.phase else replace(self, phase=phase, reason=reason)

    def at(self, now: float, grace_s: float) -> Lifecycle:
        """The same with its deadline: the grace starts when it is first looked at, and only once."""
        if not self.phase.has_grace or self.deadline < float("inf"):
            return self
        return replace(self, deadline=now + grace_s)

    def is_over(self, now: float, *, num_rows: int) -> bool:
        """Whether the worker has nothing more to do for the rows in its engine."""
        match self.phase:
            case Phase.RUNNING:
                return False
            case Phase.CLOSING:
                return True
            case _:
                return num_rows == 0 or now >= self.deadline

    @property
    def exit_code(self) -> int:
        """What the process should end with, of `exits`."""
        return exits.START_AGAIN if self.phase in (Phase.RECYCLING, Phase.EVACUATING) else exits.DONE
