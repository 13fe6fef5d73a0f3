"""Which of several models has its turn: a pure function of what waits, what is loaded, and for how long.

One model is loaded at a time. Its turn ends when nothing waits for it and another has something, or when another has
waited so long that it must have one. The next is whoever has starved longest, else whoever has the longest backlog. So
a model with jobs waits no longer than `max_wait_s`, and then for each other model one `min_turn_s` and one swap. Reads
no clock and starts nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from mlxq.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """When models take turns.

    Args:
        max_wait_s: so long may a model's jobs wait before its turn is due.
        min_turn_s: so long a model is left alone that others wait for, while it has jobs: to load one takes time.
        drain_s: so long may its running rows go on when its turn is over; what hasn't ended then goes back.
        idle_unload_s: after so long without any job nothing is kept loaded.

    Raises:
        ConfigError: one is negative.
    """

    max_wait_s: float = 300.0
    min_turn_s: float = 60.0
    drain_s: float = 300.0
    idle_unload_s: float = 600.0

    def __post_init__(self) -> None:
        for name in ("max_wait_s", "min_turn_s", "drain_s", "idle_unload_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"policy.{name} must be a number of seconds, not negative")

    def longest_wait_s(self, num_models: int, swap_s: float) -> float:
        """The bound: how long a model's jobs wait at most before it is loaded.

        Args:
            swap_s: what it takes to drain one model, up to `drain_s`, and to load another.
        """
        return self.max_wait_s + (num_models - 1) * (self.min_turn_s + swap_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What there is to do for one model. `waited_s` is for how long something has waited while it wasn't loaded."""

    model: str
    waiting: int = 0
    running: int = 0
    waited_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The model that has its turn, for how long, and for how long it has had nothing to do. `width` is how many rows it
    runs at once: so many running jobs are ended by draining it."""

    model: str
    width: int
    turn_s: float = 0.0
    idle_s: float = 0.0


def next_model(backlogs: Collection[Backlog], loaded: Loaded | None, policy: Policy) -> str | None:
    """Who is to be loaded: the one that is, another, or nobody."""
    waiting = [each for each in backlogs if each.waiting and (loaded is None or each.model != loaded.model)]
    if loaded is None:
        return _next_of(waiting, policy).model if waiting else None
    if not waiting:
        return None if loaded.idle_s >= policy.idle_unload_s else loaded.model
    own = next((each for each in backlogs if each.model == loaded.model), Backlog(model=loaded.model))
    is_nearly_done = not own.waiting and own.running <= loaded.width
    is_due = any(_starves(each, policy) for each in waiting) and loaded.turn_s >= policy.min_turn_s
    return _next_of(waiting, policy).model if is_nearly_done or is_due else loaded.model


def _starves(backlog: Backlog, policy: Policy) -> bool:
    return backlog.waited_s >= policy.max_wait_s


def _next_of(waiting: Collection[Backlog], policy: Policy) -> Backlog:
    """Of equals the first."""
    if starving := [each for each in waiting if _starves(each, policy)]:
        return max(starving, key=lambda each: each.waited_s)
    return max(waiting, key=lambda each: each.waiting)
