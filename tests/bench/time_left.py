"""How often the time left that a progress display shows is off by more than a quarter, from halfway through a run on.

    python -m tests.bench.time_left

Runs are played: a batch of rows that is always refilled, with lengths drawn from each of several spreads, looked at
once a second. Beside ours stands somebody who knows what no run can know: how the lengths are spread, and since when
each row has been running. What is left of a row isn't known to him either, so where a few rows are far longer than the
rest, he is off as well, and nobody can do better for long. Seeded; measures no time. The last line is JSON.
"""

from __future__ import annotations

import heapq
import math
import random
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import click
from tests.bench import report

from mlxq.files.tally import NUM_SERVICE_TIMES
from mlxq.files.time_left import TimeLeft

WIDTH = 32
STEP_S = 0.02
NUM_ROWS = 2000
LOADING_S = 10.0
NUM_KNOWN = 50_000
"""Lengths by which he who knows their spread knows it."""
OFF_BY = 0.25
LAST_S = 5.0
"""A display that counts in seconds, and waits for one last row, may be wrong by so much."""

Draw = Callable[[random.Random], int]

MIXED: Mapping[str, Draw] = {
    "one in five long": lambda rng: rng.choice((20, 25, 30, 40, 600)),
    "from 1 to 512": lambda rng: rng.randint(1, 512),
    "words and pages": lambda rng: rng.randint(3, 12) if rng.random() < 0.7 else rng.randint(250, 400),
    "all alike": lambda rng: 128,
}
"""Lengths of answers, in tokens."""
LONG_TAILS: Mapping[str, Draw] = {
    "geometric": lambda rng: 1 + int(rng.expovariate(1 / 150)),
    "log-normal": lambda rng: 1 + int(rng.lognormvariate(math.log(80), 1.0)),
    "log-normal up to 1024": lambda rng: min(1024, 1 + int(rng.lognormvariate(math.log(80), 1.0))),
    "Pareto up to 2048": lambda rng: min(2048, int(30 * rng.paretovariate(1.5))),
}
"""Likewise, where one answer in hundreds is many times as long as most."""


class Row(NamedTuple):
    """When a row began and ended, in seconds of the run."""

    began: float
    ended: float

    @property
    def took_s(self) -> float:
        return self.ended - self.began


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a run: the truth, and what is shown; seconds."""

    truth_s: float
    shown_s: float

    @property
    def is_off(self) -> bool:
        return abs(self.shown_s - self.truth_s) > max(OFF_BY * self.truth_s, LAST_S)


@click.command(help=__doc__)
@click.option("--seeds", "num_seeds", type=click.IntRange(1), default=16, show_default=True)
@report.json_option
def main(num_seeds: int, json_path: Path | None) -> None:
    figures = {}
    for name, draw in (MIXED | LONG_TAILS).items():
        ours, his = shares_off(name, draw, num_seeds)
        print(f"{name:22}  off in {ours:6.1%} of looks; who knows the spread {his:6.1%}", flush=True)
        figures[name] = {"ours": round(ours, 3), "knowing": round(his, 3)}
    report.publish(figures, json_path)


def shares_off(name: str, draw: Draw, num_seeds: int) -> tuple[float, float]:
    """The share of looks that are off: of ours, and of him who knows the spread; each run counts alike."""
    runs = [played(name, draw, seed) for seed in range(num_seeds)]
    shown = [[list(looks_of(run)), list(looks_of(run, Knowing.of(draw)))] for run in runs]
    ours, his = (sum(_share_off(looks) for looks in each) / num_seeds for each in zip(*shown, strict=True))
    return ours, his


def _share_off(looks: Sequence[Look]) -> float:
    return sum(look.is_off for look in looks) / len(looks)


def played(name: str, draw: Draw, seed: int) -> list[Row]:
    """The rows of a run, in the order in which they begin."""
    rng = random.Random(f"{seed} {name}")
    running: list[float] = []
    rows, now = [], LOADING_S
    for _ in range(NUM_ROWS):
        if len(running) == WIDTH:
            now = heapq.heappop(running)
        rows.append(Row(now, now + draw(rng) * STEP_S))
        heapq.heappush(running, rows[-1].ended)
    return rows


def looks_of(rows: Sequence[Row], knowing: Knowing | None = None, *, every_s: float = 1.0) -> Iterator[Look]:
    """What is shown from halfway on: by us, or by him."""
    by_end = sorted(rows, key=lambda row: row.ended)
    whole_s, num_ended = by_end[-1].ended, 0
    time_left, service_s = TimeLeft(), deque[float](maxlen=NUM_SERVICE_TIMES)
    for look in range(int(whole_s / every_s)):
        now = look * every_s
        while by_end[num_ended].ended <= now:
            service_s.append(by_end[num_ended].took_s)
            num_ended += 1
        time_left.update(now, num_ended)
        if now < whole_s / 2:
            continue
        if knowing is None:
            shown_s = time_left.estimate_s(len(rows) - num_ended, service_s)
            assert shown_s is not None
        else:
            ages = [now - row.began for row in by_end[num_ended:] if row.began <= now]
            shown_s = knowing.left_s(ages, len(rows) - num_ended - len(ages))
        yield Look(whole_s - now, shown_s)


class Knowing:
    """He who knows how long rows take in all: these, each as likely as the others."""

    def __init__(self, service_s: Sequence[float]) -> None:
        self._rising = sorted(service_s)
        self._sums = [0.0, *accumulate(self._rising)]

    @classmethod
    @cache
    def of(cls, draw: Draw) -> Knowing:
        rng = random.Random(1)
        return cls([draw(rng) * STEP_S for _ in range(NUM_KNOWN)])

    def left_s(self, ages: Sequence[float], num_waiting: int) -> float:
        """When all have ended as likely as not: rows that have been running for so long, and others that begin one by
        one as those end."""
        per_s = WIDTH / (self._sums[-1] / len(self._rising))
        until_empty_s = num_waiting / per_s
        before = [self._longer(age) or 1 for age in ages]

        def num_running(in_s: float) -> float:
            old = sum(self._longer(age + in_s) / those for age, those in zip(ages, before, strict=True))
            return old + per_s * (self._up_to(in_s) - self._up_to(in_s - until_empty_s))

        low, high = until_empty_s, until_empty_s + self._rising[-1]
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if num_running(middle) > math.log(2) else (low, middle)
        return high

    def _longer(self, than_s: float) -> int:
        """How many take longer."""
        return len(self._rising) - bisect_right(self._rising, than_s)

    def _up_to(self, seconds: float) -> float:
        """The integral of the share that takes longer."""
        shorter = bisect_right(self._rising, seconds)
        return (self._sums[shorter] + (len(self._rising) - shorter) * seconds) / len(self._rising)


if __name__ == "__main__":
    main()
