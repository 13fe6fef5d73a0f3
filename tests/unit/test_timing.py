"""Periods on a clock that the tests move."""

from __future__ import annotations

from mlxq_worker.timing import Every


def test_it_is_due_at_once_and_then_once_per_period() -> None:
    every = Every(10)

    assert [every.is_due(now) for now in (1000, 1009, 1010, 1015, 1021)] == [True, False, True, False, True]


def test_a_clock_that_jumps_back_makes_it_due() -> None:
    every = Every(10)
    every.is_due(1000)

    assert every.is_due(500)


def test_what_is_postponed_waits_longer_once() -> None:
    every = Every(10)
    every.postpone(1000, 30)

    every.postpone(1000, 5)

    assert every.left_s(1000) == 30
    assert [every.is_due(now) for now in (1015, 1029, 1030, 1039, 1040)] == [False, False, True, False, True]
