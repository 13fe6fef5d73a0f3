"""How a worker comes to its end: every event in every phase, grace and exit codes."""

from __future__ import annotations

import pytest

from mlxq_worker import exits
from mlxq_worker.decoding.lifecycle import TRANSITIONS, Event, Lifecycle, Phase

NEVER = float("inf")
ALL_PAIRS = [(phase, event) for phase in Phase for event in Event]
IN_GRACE = (Phase.EVACUATING, Phase.STOPPING, Phase.INTERRUPTED)


def lived_through(*events: Event) -> Lifecycle:
    lifecycle = Lifecycle()
    for event in events:
        lifecycle = lifecycle.after(event)
    return lifecycle


# --- Phases ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("phase", "event"), ALL_PAIRS)
def test_no_event_lets_a_worker_that_is_ending_admit_rows_again(phase: Phase, event: Event) -> None:
    after = Lifecycle(phase).after(event).phase

    assert phase.admits or not after.admits


@pytest.mark.parametrize(("phase", "event"), ALL_PAIRS)
def test_an_event_that_changes_nothing_keeps_the_reason_and_one_that_does_gives_its_own(
    phase: Phase, event: Event
) -> None:
    before = Lifecycle(phase, "first", 5.0)

    after = before.after(event, "second")

    has_changed = (phase, event) in TRANSITIONS
    assert (after == before) != has_changed
    assert after.reason == ("second" if has_changed else "first")
    assert after.deadline == 5.0, "grace that has started never starts again"


@pytest.mark.parametrize("phase", Phase)
def test_two_signals_close_a_worker_in_any_phase(phase: Phase) -> None:
    once = Lifecycle(phase).after(Event.SIGNAL)
    twice = once.after(Event.SIGNAL)

    assert twice.phase is Phase.CLOSING
    assert once.phase in (Phase.INTERRUPTED, Phase.CLOSING)


def test_no_event_but_a_signal_closes_a_worker() -> None:
    closing = {event for (phase, event), after in TRANSITIONS.items() if after is Phase.CLOSING}

    assert closing == {Event.SIGNAL}


@pytest.mark.parametrize(
    ("events", "phase"),
    [
        ((Event.DRAIN,), Phase.DRAINED),
        ((Event.RECYCLE,), Phase.RECYCLING),
        ((Event.RECYCLE, Event.DRAIN), Phase.RECYCLING),
        ((Event.RECYCLE, Event.EVACUATE), Phase.EVACUATING),
        ((Event.EVACUATE, Event.RECYCLE), Phase.EVACUATING),
        ((Event.STOP, Event.STOP), Phase.STOPPING),
        ((Event.STOP, Event.SIGNAL), Phase.INTERRUPTED),
        ((Event.RECYCLE, Event.SIGNAL), Phase.INTERRUPTED),
        ((Event.SIGNAL, Event.EVACUATE), Phase.INTERRUPTED),
        ((Event.SIGNAL, Event.SIGNAL, Event.RECYCLE), Phase.CLOSING),
    ],
)
def test_what_happens_in_a_row_leads_to_one_phase(events: tuple[Event, ...], phase: Phase) -> None:
    assert lived_through(*events).phase is phase


# --- Grace ----------------------------------------------------------------------------------------------------


def test_grace_starts_with_the_first_look_and_only_once() -> None:
    stopping = lived_through(Event.STOP).at(100.0, 30.0)
    interrupted = stopping.after(Event.SIGNAL).at(120.0, 30.0)

    assert (stopping.deadline, interrupted.deadline) == (130.0, 130.0)


@pytest.mark.parametrize("phase", Phase)
def test_rows_have_a_deadline_only_where_the_phase_gives_them_grace(phase: Phase) -> None:
    deadline = Lifecycle(phase).at(100.0, 30.0).deadline

    assert deadline == (130.0 if phase in IN_GRACE else NEVER)


def test_a_worker_that_recycles_in_peace_gets_a_deadline_once_it_has_to_go_soon() -> None:
    recycling = lived_through(Event.RECYCLE).at(100.0, 30.0)
    evacuating = recycling.after(Event.EVACUATE).at(500.0, 30.0)

    assert (recycling.deadline, evacuating.deadline) == (NEVER, 530.0)


# --- The end --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "num_rows", "is_over"),
    [
        (Phase.RUNNING, 0, False),
        (Phase.DRAINED, 0, True),
        (Phase.DRAINED, 1, False),
        (Phase.RECYCLING, 1, False),
        (Phase.RECYCLING, 0, True),
        (Phase.STOPPING, 1, False),
        (Phase.INTERRUPTED, 0, True),
        (Phase.CLOSING, 1, True),
    ],
)
def test_a_worker_is_over_once_no_row_is_in_its_engine(phase: Phase, num_rows: int, is_over: bool) -> None:
    lifecycle = Lifecycle(phase).at(100.0, 30.0)

    assert lifecycle.is_over(100.0, num_rows=num_rows) is is_over


@pytest.mark.parametrize("phase", IN_GRACE)
def test_a_worker_is_over_at_its_deadline_whatever_still_runs(phase: Phase) -> None:
    lifecycle = Lifecycle(phase).at(100.0, 30.0)

    looks = [lifecycle.is_over(now, num_rows=1) for now in (129.9, 130.0)]

    assert looks == [False, True]


@pytest.mark.parametrize(
    ("events", "exit_code"),
    [
        ((), exits.DONE),
        ((Event.DRAIN,), exits.DONE),
        ((Event.RECYCLE,), exits.START_AGAIN),
        ((Event.EVACUATE,), exits.START_AGAIN),
        ((Event.DRAIN, Event.RECYCLE), exits.START_AGAIN),
        ((Event.STOP,), exits.DONE),
        ((Event.STOP, Event.RECYCLE), exits.DONE),
        ((Event.STOP, Event.EVACUATE), exits.DONE),
        ((Event.RECYCLE, Event.STOP), exits.DONE),
        ((Event.EVACUATE, Event.STOP), exits.DONE),
        ((Event.RECYCLE, Event.SIGNAL), exits.DONE),
        ((Event.SIGNAL, Event.EVACUATE), exits.DONE),
        ((Event.SIGNAL, Event.SIGNAL), exits.DONE),
    ],
)
def test_a_fresh_process_goes_on_only_for_a_worker_that_nobody_asked_to_end(
    events: tuple[Event, ...], exit_code: int
) -> None:
    assert lived_through(*events).exit_code == exit_code
