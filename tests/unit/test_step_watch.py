"""When the rows in the engine count as stuck, on a clock that the tests move."""

from __future__ import annotations

from mlxq_worker.step_watch import StepWatch


def is_stuck(watch: StepWatch, begin: int, end: int) -> bool:
    """At the end of a time in which somebody asks every second."""
    return [watch.is_stuck(now) for now in range(begin, end + 1)][-1]


def test_a_step_is_stuck_once_it_takes_longer_than_the_timeout() -> None:
    watch = StepWatch(300)
    watch.begin(1000)

    assert not is_stuck(watch, 1000, 1300)
    assert watch.is_stuck(1301)


def test_steps_that_end_but_bring_nothing_are_stuck_too() -> None:
    watch = StepWatch(300)
    for now in (1000, 1100, 1200):
        watch.begin(now)
        watch.end(has_advanced=False)

    assert not is_stuck(watch, 1000, 1300)
    assert watch.is_stuck(1301)


def test_every_step_that_brings_something_buys_time() -> None:
    watch = StepWatch(300)
    for now in (1000, 1200, 1400):
        watch.begin(now)
        assert not is_stuck(watch, now, now + 200)
        watch.end(has_advanced=True)
    watch.begin(1500)

    assert not is_stuck(watch, 1500, 1800)
    assert watch.is_stuck(1801)


def test_a_worker_that_has_nothing_to_decode_is_not_stuck() -> None:
    watch = StepWatch(300)
    before = watch.is_stuck(1e9)
    watch.begin(1000)
    watch.end(has_advanced=True)

    assert (before, watch.is_stuck(1e9)) == (False, False)


def test_what_passes_while_the_whole_process_is_stopped_makes_no_step_stuck() -> None:
    watch = StepWatch(300)
    watch.begin(1000)
    assert not is_stuck(watch, 1000, 1100)

    assert not is_stuck(watch, 9000, 9100)
    assert is_stuck(watch, 9100, 9130), "100 s before, a quarter of the timeout for the gap, 125 s since"


def test_the_next_wait_is_not_excused_for_what_passed_in_the_one_before() -> None:
    watch = StepWatch(300)
    watch.begin(1000)
    assert not watch.is_stuck(9000)
    watch.end(has_advanced=True)
    watch.begin(9000)

    assert not is_stuck(watch, 9000, 9300)
    assert watch.is_stuck(9301)
