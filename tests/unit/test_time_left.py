"""The time left that a progress display shows, against what a batch of rows of mixed lengths then takes."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable

import pytest

from mlxq.files.time_left import TimeLeft

WIDTH = 32
STEP_S = 0.02
LOOK_EVERY_S = 0.2
LAST_S = 5.0
"""A display that counts in seconds, and waits for one last row, may be wrong by so much."""

LENGTHS: dict[str, Callable[[random.Random], int]] = {
    "one in five long": lambda rng: rng.choice((20, 25, 30, 40, 600)),
    "from 1 to 512": lambda rng: rng.randint(1, 512),
    "words and pages": lambda rng: rng.randint(3, 12) if rng.random() < 0.7 else rng.randint(250, 400),
    "all alike": lambda rng: 128,
}


def ends_of(lengths: list[int], loading_s: float) -> list[tuple[float, float]]:
    """When each row of a batch ends that is always refilled, in order, and how long it has taken; seconds."""
    running: list[tuple[float, float]] = []
    ends, now = [], loading_s
    for length in lengths:
        if len(running) == WIDTH:
            now, taken_s = heapq.heappop(running)
            ends.append((now, taken_s))
        heapq.heappush(running, (now + length * STEP_S, length * STEP_S))
    return ends + [heapq.heappop(running) for _ in range(len(running))]


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("seed", range(3))
def test_from_halfway_on_the_time_left_is_within_a_quarter_of_the_truth(name: str, seed: int) -> None:
    # given a run over two thousand requests of mixed lengths, that begins with ten seconds of loading
    rng = random.Random(f"{seed} {name}")
    ends = ends_of([LENGTHS[name](rng) for _ in range(2000)], loading_s=10.0)
    whole_s = ends[-1][0]
    time_left, service_s, num_ended = TimeLeft(), deque[float](maxlen=256), 0

    # when it is looked at five times a second
    wrong = []
    for look in range(int(whole_s / LOOK_EVERY_S)):
        now = look * LOOK_EVERY_S
        while ends[num_ended][0] <= now:
            service_s.append(ends[num_ended][1])
            num_ended += 1
        time_left.update(now, num_ended)
        estimate_s = time_left.estimate_s(len(ends) - num_ended, service_s)
        if now >= whole_s / 2:
            assert estimate_s is not None
            truth_s = whole_s - now
            if abs(estimate_s - truth_s) > max(0.25 * truth_s, LAST_S):
                wrong.append((round(truth_s, 1), round(estimate_s, 1)))

    # then
    assert wrong == []


def test_nothing_is_said_before_anything_has_ended_and_little_is_needed_then() -> None:
    time_left = TimeLeft()
    assert time_left.estimate_s(10, []) is None
    for second in range(5):
        time_left.update(second, 0)
    assert time_left.estimate_s(10, []) is None
    time_left.update(5.0, 2)
    time_left.update(6.0, 4)
    assert time_left.estimate_s(10, []) == pytest.approx(5.0, rel=0.5)


def test_a_long_run_keeps_few_samples_and_its_rate() -> None:
    time_left = TimeLeft()
    for second in range(100_000):
        time_left.update(second, 3 * second)
    assert time_left.estimate_s(300, []) == pytest.approx(100, rel=0.02)
    assert len(time_left._samples) <= 512
