"""How many tokens a step takes, from timings."""

from __future__ import annotations

import pytest
from tests.support.tiny_models import build

from mlxq_worker.engine.runners import step_timing
from mlxq_worker.engine.runners.packed_model import Way
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


def test_sizes_are_timed_as_long_as_tokens_get_cheaper_and_the_first_step_does_not_count() -> None:
    timed: list[int] = []

    def step_seconds(num_tokens: int) -> float:
        timed.append(num_tokens)
        return 5.0 if len(timed) == 1 else {32: 0.014, 128: 0.040, 256: 0.060, 512: 0.150}[num_tokens]

    assert find_size(step_seconds, 32) == 256
    assert timed == [32, 32, 128, 256, 512]


@pytest.mark.parametrize(("taken_s", "said_s"), [((5.0, 0.02, 0.01), 0.01), ((5.0, 0.2), 0.2)], ids=["short", "long"])
def test_a_step_of_a_size_is_timed_once_it_is_warm(
    taken_s: tuple[float, ...], said_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(taken_s)
    monkeypatch.setattr(step_timing, "_step_seconds", lambda *_: next(times))

    assert step_timing.step_seconds(build("llama"), Way.SHARED, 100, 4) == said_s
    assert not list(times)
