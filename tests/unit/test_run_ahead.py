"""When a step starts before the last one has been looked at, from what became of the rows."""

from __future__ import annotations

import pytest

from mlxq_worker.engine.scheduling.run_ahead import RunAhead


def after(run_ahead: RunAhead, num_steps: int, num_unforeseen: int) -> RunAhead:
    """Steps of 100 rows."""
    for _ in range(num_steps):
        run_ahead.saw(100, num_unforeseen)
    return run_ahead


def test_steps_run_ahead_until_rows_have_done_what_nobody_foresaw() -> None:
    assert RunAhead().pays
    assert after(RunAhead(), 10, 0).pays
    assert not after(RunAhead(), 1, 5).pays


def test_up_to_three_rows_in_a_hundred_may_be_computed_in_vain() -> None:
    assert after(RunAhead(), 200, 3).pays
    assert not after(RunAhead(), 200, 4).pays


def test_what_has_changed_shows_after_some_dozen_steps() -> None:
    long_answers = after(RunAhead(), 1000, 1)
    short_answers = after(RunAhead(), 1000, 10)

    assert not after(long_answers, 30, 10).pays
    assert after(short_answers, 100, 1).pays


def test_steps_without_rows_change_nothing() -> None:
    run_ahead = after(RunAhead(), 1, 5)

    run_ahead.saw(0, 0)

    assert repr(run_ahead) == "RunAhead(in step, 5.0% unforeseen)"


@pytest.mark.parametrize("pipelined", [True, False])
def test_who_is_told_does_as_told(pipelined: bool) -> None:
    assert after(RunAhead(pipelined), 10, 0).pays is pipelined
    assert after(RunAhead(pipelined), 10, 100).pays is pipelined
