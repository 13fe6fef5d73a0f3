"""When the rows in the engine count as stuck, on a clock that the tests move."""

from __future__ import annotations

from mlxq_worker.step_watch import StepWatch


def test_a_step_is_stuck_once_it_takes_longer_than_the_timeout() -> None:
    watch = StepWatch(300)
    watch.begin(1000)

    assert [watch.is_stuck(now) for now in (1000, 1300, 1301)] == [False, False, True]


def test_steps_that_end_but_bring_nothing_are_stuck_too() -> None:
    watch = StepWatch(300)
    for now in (1000, 1200, 1400):
        watch.begin(now)
        watch.end(has_advanced=False)

    assert watch.is_stuck(1301)


def test_every_step_that_brings_something_buys_time() -> None:
    watch = StepWatch(300)
    for now in (1000, 1200, 1400):
        watch.begin(now)
        watch.end(has_advanced=True)
    watch.begin(1500)

    assert not watch.is_stuck(1800)
    assert watch.is_stuck(1801)


def test_a_worker_that_has_nothing_to_decode_is_not_stuck() -> None:
    watch = StepWatch(300)
    before = watch.is_stuck(1e9)
    watch.begin(1000)
    watch.end(has_advanced=True)

    assert (before, watch.is_stuck(1e9)) == (False, False)
