"""When a step starts before the last one has been looked at, from what became of the rows and how long steps took."""

from __future__ import annotations

import pytest

from mlxq_worker.engine.scheduling.run_ahead import RunAhead


def after(
    run_ahead: RunAhead, num_steps: int, num_unforeseen: int, *, host_ms: float = 3, device_ms: float = 97
) -> RunAhead:
    """Steps of 100 rows, none of which ran ahead."""
    for _ in range(num_steps):
        run_ahead.saw(100, num_unforeseen)
        run_ahead.took(host_ms / 1000, device_ms / 1000, was_ahead=False)
    return run_ahead


def test_steps_run_ahead_until_rows_have_done_what_nobody_foresaw() -> None:
    assert RunAhead().pays
    assert after(RunAhead(), 10, 0).pays
    assert not after(RunAhead(), 1, 5).pays


@pytest.mark.parametrize(
    ("host_ms", "device_ms", "most"), [(3.01, 97, 3), (10.01, 30, 25), (0.51, 99.5, 0), (5, 5, 50)]
)
def test_so_many_rows_may_be_computed_in_vain_as_host_time_is_of_a_step(
    host_ms: float, device_ms: float, most: int
) -> None:
    assert after(RunAhead(), 200, most, host_ms=host_ms, device_ms=device_ms).pays
    assert not after(RunAhead(), 200, most + 1, host_ms=host_ms, device_ms=device_ms).pays


def test_where_the_device_waits_for_python_only_its_own_time_can_be_hidden() -> None:
    assert after(RunAhead(), 200, 9, host_ms=90, device_ms=10).pays
    assert not after(RunAhead(), 200, 11, host_ms=90, device_ms=10).pays


def test_a_device_that_computes_meanwhile_took_the_host_time_and_the_wait() -> None:
    ahead = RunAhead()
    for _ in range(200):
        ahead.saw(100, 9)
        ahead.took(0.010, 0.090, was_ahead=True)  # 10 ms of Python beside 100 ms of the device

    assert ahead.pays
    assert repr(ahead) == "RunAhead(ahead, 9.0% unforeseen, 9.1% hidden)"


@pytest.mark.parametrize(("copy_ms", "pays"), [(2.0, True), (2.5, False), (50.0, False)])
def test_what_the_device_has_to_copy_is_not_hidden(copy_ms: float, pays: bool) -> None:
    run_ahead = RunAhead()
    for _ in range(10):
        run_ahead.saw(100, 1)
        run_ahead.took(0.00301, 0.0970, was_ahead=False, copy_s=copy_ms / 1000)

    assert run_ahead.pays is pays


def test_copies_that_take_longer_than_python_never_pay_even_if_every_end_is_foreseen() -> None:
    run_ahead = RunAhead()
    run_ahead.saw(100, 0)
    run_ahead.took(0.003, 0.097, was_ahead=False, copy_s=0.004)

    assert not run_ahead.pays


def test_what_has_changed_shows_after_some_dozen_steps() -> None:
    long_answers = after(RunAhead(), 1000, 1)
    short_answers = after(RunAhead(), 1000, 10)

    assert not after(long_answers, 30, 10).pays
    assert after(short_answers, 100, 1).pays


def test_steps_without_rows_change_nothing() -> None:
    run_ahead = after(RunAhead(), 1, 5)

    run_ahead.saw(0, 0)

    assert repr(run_ahead) == "RunAhead(in step, 5.0% unforeseen, 3.0% hidden)"


@pytest.mark.parametrize("host_ms", [1, 50, 99])
def test_on_a_device_that_does_not_compute_beside_python_it_never_pays(host_ms: float) -> None:
    run_ahead = RunAhead(overlaps=False)

    assert not run_ahead.pays
    assert not after(run_ahead, 10, 0, host_ms=host_ms, device_ms=100 - host_ms).pays


@pytest.mark.parametrize("pipelined", [True, False])
def test_who_is_told_does_as_told(pipelined: bool) -> None:
    assert after(RunAhead(pipelined, overlaps=False), 10, 0).pays is pipelined
    assert after(RunAhead(pipelined), 10, 100).pays is pipelined
