"""What happens when: the faults of a run, drawn from its seed alone, or Redis's own errors in turn. Knows nothing of
processes.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

RedisError = Literal["MISCONF", "OOM", "BUSY", "read-only replica", "full disk"]
Kind = (
    Literal["kill worker", "kill supervisor", "freeze worker", "cut connections", "kill Redis", "kill producer"]
    | RedisError
)

WORKER_KILL_PERIOD_S = 7.0
"""A worker needs seconds to load its model: with many more kills nothing would ever be answered."""
SUPERVISOR_KILL_PERIOD_S = 25.0
CUT_PERIOD_S = 8.0
FREEZE_PERIOD_S = 18.0
PRODUCER_KILL_PERIOD_S = 20.0
NUM_REDIS_KILLS = 3
REDIS_AWAY_S = (0.5, 4.0)
ERROR_SHARE = 0.8
"""Of the time that each of Redis's errors has, it lasts so much; then Redis is well until the next one."""
FREEZE_LEASES = (1.3, 2.5)
"""How long a worker stays frozen, in leases."""


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One fault at `at_s` after the start. `lasts_s` is how long Redis stays away or answers with an error, or a worker
    stays frozen; `target` picks the worker."""

    at_s: float
    kind: Kind
    target: int = 0
    lasts_s: float = 0.0


def draw(seed: int, seconds: float, num_workers: int, lease_s: float) -> list[Fault]:
    """The faults of a run, by time; Redis is killed three times, once in each third."""
    rng = random.Random(f"faults:{seed}")

    def target() -> int:
        return rng.randrange(num_workers)

    kills = [Fault(at_s, "kill worker", target()) for at_s in _times(rng, WORKER_KILL_PERIOD_S, seconds)]
    supervisor_kills = [Fault(at_s, "kill supervisor") for at_s in _times(rng, SUPERVISOR_KILL_PERIOD_S, seconds)]
    cuts = [Fault(at_s, "cut connections") for at_s in _times(rng, CUT_PERIOD_S, seconds)]
    freezes = [
        Fault(at_s, "freeze worker", target(), lease_s * rng.uniform(*FREEZE_LEASES))
        for at_s in _times(rng, FREEZE_PERIOD_S, seconds)
    ]
    producer_kills = [Fault(at_s, "kill producer") for at_s in _times(rng, PRODUCER_KILL_PERIOD_S, seconds)]
    third_s = seconds / NUM_REDIS_KILLS
    redis_kills = [
        Fault((third + rng.uniform(0.2, 0.8)) * third_s, "kill Redis", lasts_s=rng.uniform(*REDIS_AWAY_S))
        for third in range(NUM_REDIS_KILLS)
    ]
    return sorted([*kills, *supervisor_kills, *cuts, *freezes, *producer_kills, *redis_kills])


def redis_errors(seconds: float) -> list[Fault]:
    """Each of Redis's own errors for an equal time, one after the other; no full disk where none can be played."""
    kinds = [kind for kind in get_args(RedisError) if kind != "full disk" or sys.platform == "linux"]
    turn_s = seconds / len(kinds)
    return [Fault(index * turn_s, kind, lasts_s=ERROR_SHARE * turn_s) for index, kind in enumerate(kinds)]


def _times(rng: random.Random, period_s: float, seconds: float) -> Iterator[float]:
    """Moments that lie half a period to one and a half periods apart."""
    at_s = rng.uniform(0.5, 1.5) * period_s
    while at_s < seconds:
        yield at_s
        at_s += rng.uniform(0.5, 1.5) * period_s
