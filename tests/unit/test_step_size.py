"""How many tokens a step takes, from timings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from types import MappingProxyType
from unittest import mock

import mlx.core as mx
import pytest
from tests.support.tiny_models import build

from mlxq_worker.engine.kvcache import device
from mlxq_worker.engine.runners import step_timing
from mlxq_worker.engine.runners.packed_model import Way
from mlxq_worker.engine.scheduling import step_size
from mlxq_worker.engine.scheduling.step_size import (
    MAX_STALL,
    MAX_TOKENS,
    StepTiming,
    choose_size,
    find_size,
    first_size,
    next_size,
)


def timings(**milliseconds: float) -> list[StepTiming]:
    return [StepTiming(int(name.lstrip("n")), value / 1000) for name, value in milliseconds.items()]


DECODE = StepTiming(32, 0.014)


def test_a_step_is_of_the_size_at_which_tokens_are_cheapest() -> None:
    assert choose_size(DECODE, timings(n64=20, n128=29, n256=40, n512=79, n1024=161)) == 512


def test_a_step_takes_no_longer_than_some_steps_without_prompts() -> None:
    falling = timings(n64=180, n128=MAX_STALL * 14, n256=MAX_STALL * 14 + 1)

    assert choose_size(DECODE, falling) == 128


def test_the_smallest_size_is_allowed_however_long_it_takes() -> None:
    assert choose_size(DECODE, timings(n64=900)) == 64


@pytest.mark.parametrize(("num_rows", "size"), [(1, 128), (32, 128), (33, 256), (64, 256), (100, 512)])
def test_the_smallest_size_leaves_most_of_a_step_to_prompts(num_rows: int, size: int) -> None:
    assert first_size(num_rows) == size


def test_no_larger_size_is_timed_once_tokens_get_dearer() -> None:
    assert next_size(DECODE, timings(n64=20, n128=41)) == 256
    assert next_size(DECODE, timings(n64=20, n128=43)) is None


@pytest.mark.parametrize(
    ("last", "following"),
    [
        (StepTiming(64, 0.020), 128),
        (StepTiming(512, 0.124), 1024),
        (StepTiming(512, 0.125), None),
        (StepTiming(MAX_TOKENS, 0.001), None),
    ],
)
def test_sizes_double_until_a_step_would_surely_be_too_long(last: StepTiming, following: int | None) -> None:
    assert next_size(DECODE, [last]) == following


class Machine:
    """Steps that take what is said, but for those, by their number, that something else makes longer; with a clock that
    shows nothing else."""

    def __init__(self, milliseconds: Mapping[int, float], longer: Mapping[int, float] = MappingProxyType({})) -> None:
        self._milliseconds, self._longer = milliseconds, longer
        self.timed: list[int] = []
        self.now_s = 0.0

    def step_seconds(self, num_tokens: int) -> float:
        seconds = self._milliseconds[num_tokens] / 1000 * self._longer.get(len(self.timed), 1)
        self.timed.append(num_tokens)
        self.now_s += seconds
        return seconds

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def find_size_on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Machine], int]:
    """What is found there for 32 rows."""

    def find(machine: Machine) -> int:
        monkeypatch.setattr(step_size, "time", machine)
        return find_size(machine.step_seconds, 32)

    return find


SLOW_FROM_512 = {32: 14.0, 128: 40.0, 256: 60.0, 512: 150.0}
CHEAPER_UP_TO_512 = {32: 14.0, 128: 30.0, 256: 56.0, 512: 108.0, 1024: 220.0, 2048: 450.0}


def test_sizes_are_timed_as_long_as_tokens_get_cheaper_and_the_first_step_does_not_count(
    find_size_on: Callable[[Machine], int],
) -> None:
    machine = Machine(SLOW_FROM_512, longer={0: 5})

    assert find_size_on(machine) == 256
    assert machine.timed == [32, 32, 128, 256, 512, *2 * [32, 256, 512]]


@pytest.mark.parametrize("number", range(11))
@pytest.mark.parametrize("times", [1.3, 3])
def test_a_step_that_something_makes_longer_changes_nothing(
    number: int, times: float, find_size_on: Callable[[Machine], int]
) -> None:
    assert find_size_on(Machine(CHEAPER_UP_TO_512, longer={number: times})) == 512


def test_nothing_is_timed_again_once_that_has_taken_too_long(find_size_on: Callable[[Machine], int]) -> None:
    machine = Machine({size: 20 * value for size, value in SLOW_FROM_512.items()})

    assert find_size_on(machine) == 256
    assert machine.timed == [32, 32, 128, 256]


@pytest.mark.parametrize(("taken_s", "said_s"), [((5.0, 0.02, 0.01), 0.01), ((5.0, 0.2), 0.2)], ids=["short", "long"])
def test_a_step_of_a_size_is_timed_once_it_is_warm(
    taken_s: tuple[float, ...], said_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(taken_s)
    monkeypatch.setattr(step_timing, "_step_seconds", lambda *_: next(times))

    assert step_timing.step_seconds(build("llama"), Way.SHARED, 100, 4) == said_s
    assert not list(times)


@pytest.mark.parametrize(
    ("wall_s", "cpu_s", "is_gpu", "said_s"),
    [(0.03, 0.02, False, 0.02), (0.03, 0.05, False, 0.03), (0.03, 0.002, True, 0.03)],
    ids=["others compute, too", "several threads", "a GPU computes"],
)
def test_what_others_do_on_the_processors_does_not_count(
    wall_s: float, cpu_s: float, is_gpu: bool, said_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = mock.Mock(perf_counter=count(0, wall_s).__next__, process_time=count(0, cpu_s).__next__)
    packed = mock.Mock(hidden=lambda *_: mx.zeros((4, 1, 8)), logits=lambda hidden: hidden)
    monkeypatch.setattr(step_timing, "time", clocks)
    monkeypatch.setattr(device, "is_gpu", lambda: is_gpu)

    assert step_timing._step_seconds(packed, mock.Mock(), 4, 2) == said_s
