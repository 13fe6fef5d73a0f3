"""The decode side alone: messages in, messages out, one turn at a time, without Redis and without threads."""

from __future__ import annotations

import gc
from queue import Empty
from typing import Any

import pytest
from tests.support.fake_engine import FakeEngine, FakeRow
from tests.support.row_specs import name_of, row_named

from mlxq_worker import exits
from mlxq_worker.decoding.lifecycle import Phase
from mlxq_worker.decoding.loop import DecodeLoop
from mlxq_worker.decoding.memory_watch import MemoryWatch
from mlxq_worker.decoding.width import CALM_S
from mlxq_worker.engine.api import RowId, RowSpec, StepReport
from mlxq_worker.messages import (
    Admit,
    Cancel,
    Channel,
    Drained,
    Dropped,
    IoFailed,
    Recycle,
    Refused,
    Returned,
    RowEnded,
    Signalled,
    StepRaised,
    StopClaiming,
    StopWorker,
    ToDecode,
    ToIo,
)
from mlxq_worker.step_watch import StepWatch


@pytest.fixture(autouse=True, scope="module")
def _nothing_left_by_others() -> None:
    """Whenever a step raises the loop collects garbage: it is not to look through what the tests before have left."""
    gc.collect()
    gc.freeze()


class Rig:
    """A loop over fake engines two rows wide."""

    def __init__(self, width: int = 2, *, first_engine: FakeEngine | None = None, **options: Any) -> None:
        self._first_engine = first_engine
        self.channel = Channel.open()
        self.engines: list[FakeEngine] = []
        self._width = width
        self.watch = StepWatch(1.0)
        self.loop = DecodeLoop(self._new_engine, self.channel, width, self.watch, **options)

    def _new_engine(self) -> FakeEngine:
        is_first = not self.engines
        self.engines.append(self._first_engine if self._first_engine and is_first else FakeEngine(self._width))
        return self.engines[-1]

    def turn(self, *messages: ToDecode, now: float = 0.0) -> list[ToIo]:
        for message in messages:
            self.channel.to_decode.put(message)
        self.loop.receive(0.0)
        self.loop.turn(now)
        return list(self._sent())

    def _sent(self) -> list[ToIo]:
        sent: list[ToIo] = []
        while True:
            try:
                sent.append(self.channel.to_io.get_nowait())
            except Empty:
                return sent


def rows(*row_ids: str, prompt: str = "hello", max_tokens: int = 2) -> Admit:
    """A job with these rows."""
    return Admit(tuple(row(row_id, prompt, max_tokens) for row_id in row_ids))


def ids(*names: str) -> tuple[RowId, ...]:
    return tuple(map(row_named, names))


def row(row_id: str, prompt: str = "hello", max_tokens: int = 2) -> RowSpec:
    return RowSpec(
        row_id=row_named(row_id),
        prompt_ids=tuple(map(ord, prompt)),
        max_tokens=max_tokens,
        context_length=1000,
        end_tokens={},
        eos_ids=frozenset(),
        seed=0,
    )


def ended(sent: list[ToIo]) -> list[str]:
    return [name_of(message.result.row_id) for message in sent if isinstance(message, RowEnded)]


def test_rows_enter_as_others_leave() -> None:
    rig = Rig()

    first = rig.turn(rows("a", max_tokens=1), rows("b"), rows("c"))
    second = rig.turn()
    third = rig.turn()

    assert [ended(first), ended(second), ended(third)] == [["a"], ["b"], ["c"]]
    assert rig.engines[0].widths == [2, 2, 1]
    assert rig.loop.is_idle


def test_a_turn_with_nothing_to_decode_does_not_step() -> None:
    rig = Rig()

    assert rig.turn() == []
    assert rig.engines[0].widths == []


def test_a_step_that_raises_names_its_rows_and_leaves_the_waiting_ones() -> None:
    rig = Rig()

    sent = rig.turn(rows("a", prompt="boom"), rows("b"), rows("c"))
    after = rig.turn()

    [raised] = [message for message in sent if isinstance(message, StepRaised)]
    assert sorted(map(name_of, raised.row_ids)) == ["a", "b"]
    assert "boom goes the batch" in raised.error
    assert rig.engines[0].is_closed
    assert rig.engines[1].widths == [1]
    assert ended(after) == []


def test_a_step_that_raises_before_any_row_has_started_names_all_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(self: FakeEngine, now: float) -> StepReport:
        raise KeyError("the plan")

    rig = Rig()
    monkeypatch.setattr(FakeEngine, "step", raising)

    sent = rig.turn(rows("a"), rows("b"), rows("c"))

    [raised] = [message for message in sent if isinstance(message, StepRaised)]
    assert sorted(map(name_of, raised.row_ids)) == ["a", "b", "c"]
    assert rig.loop.is_idle, "or it would be tried for ever, and cost nobody anything"


def test_a_row_that_the_engine_refuses_does_not_cost_its_neighbour_the_place() -> None:
    rig = Rig()

    sent = rig.turn(rows("a", prompt="refuse"), rows("b", max_tokens=1), rows("c", max_tokens=1))

    assert [name_of(message.row_id) for message in sent if isinstance(message, Refused)] == ["a"]
    assert ended(sent) == ["b", "c"]


def test_a_cancelled_row_ends_at_the_next_step_and_a_waiting_one_at_once() -> None:
    rig = Rig()
    rig.turn(*(rows(name, max_tokens=9) for name in "abc"))

    sent = rig.turn(Cancel(ids("a")), Cancel(ids("c")), Cancel(ids("unknown")))

    assert [message for message in sent if isinstance(message, Dropped)] == [Dropped(ids("c"))]
    [result] = [message.result for message in sent if isinstance(message, RowEnded)]
    assert (name_of(result.row_id), result.stop_details.type, result.text) == ("a", "cancelled", "x")


def test_all_rows_are_handed_to_the_engine_at_once_and_wait_there() -> None:
    rig = Rig()

    first = rig.turn(rows("a", "a#1", "a#2"), rows("b"))
    handed = set(map(name_of, rig.engines[0].rows))
    rest = [rig.turn() for _ in range(4)]

    assert handed == {"a", "a#1", "a#2", "b"}, "also where they are more than can run"
    assert ended(first) == []
    assert [name for sent in rest for name in ended(sent)] == ["a", "a#1", "a#2", "b"]


def test_cancelling_a_job_ends_all_its_rows_wherever_they_are() -> None:
    rig = Rig()
    rig.turn(rows("a", "a#1", max_tokens=9), rows("b", "b#1"))

    sent = rig.turn(Cancel(ids("a", "a#1")), Cancel(ids("b", "b#1")))

    assert [message for message in sent if isinstance(message, Dropped)] == [Dropped(ids("b", "b#1"))]
    assert ended(sent) == ["a", "a#1"]


def test_rows_that_wait_behind_others_of_their_job_are_part_of_what_has_started() -> None:
    rig = Rig()
    rig.turn(rows("a", "a#1", "a#2", max_tokens=9), rows("b"))

    stopping = rig.turn(StopWorker("test"))
    cancelled = rig.turn(Cancel(ids("a", "a#1", "a#2")))

    assert stopping == [StopClaiming(), Returned(ids("b"))]
    assert ended(cancelled) == ["a", "a#1", "a#2"]
    assert rig.loop.is_idle


def test_stopping_returns_the_waiting_rows_and_those_that_still_come() -> None:
    rig = Rig()
    rig.turn(*(rows(name, max_tokens=3) for name in "abc"))

    first = rig.turn(StopWorker("test"), StopWorker("again"))
    second = rig.turn(rows("d"))

    assert first == [StopClaiming(), Returned(ids("c"))]
    assert second[0] == Returned(ids("d"))
    assert ended(second) == ["a", "b"]


def test_a_first_signal_gives_running_rows_their_grace_and_a_second_one_none() -> None:
    rig = Rig(grace_s=30.0)
    rig.turn(*(rows(name, max_tokens=9) for name in "abc"))

    first = rig.turn(Signalled())
    over = [rig.loop.is_over(now) for now in (100.0, 129.9, 130.0)]
    again = Rig(grace_s=30.0)
    again.turn(rows("a", max_tokens=9), Signalled(), Signalled())

    assert first == [StopClaiming(), Returned(ids("c"))]
    assert over == [False, False, True]
    assert again.loop.is_over(0.0)


def test_a_loop_that_recycles_is_over_once_its_rows_have_ended_and_asks_for_a_fresh_process() -> None:
    rig = Rig(grace_s=0.0)
    rig.turn(rows("a", max_tokens=3))

    rig.turn(Recycle("enough"))
    midway = rig.loop.is_over(1e9)
    rig.turn()

    assert (midway, rig.loop.is_over(1e9)) == (False, True)
    assert rig.loop.lifecycle.exit_code == exits.START_AGAIN


def test_the_loop_is_drained_only_once_its_last_row_has_ended() -> None:
    rig = Rig()

    rig.turn(rows("a"), Drained())
    midway = rig.loop.is_over(0.0)
    rig.turn()

    assert (midway, rig.loop.is_over(0.0)) == (False, True)


def test_an_error_of_the_io_thread_is_raised_on_this_one() -> None:
    rig = Rig()

    with pytest.raises(ConnectionError, match="gone"):
        rig.turn(IoFailed(ConnectionError("gone")))


# --- Memory ---------------------------------------------------------------------------------------------------


class OutOfMemory(FakeEngine):
    """Has room for so many rows and no more."""

    room = 2

    def compute(self, running: list[FakeRow]) -> None:
        if len(running) > self.room:
            raise RuntimeError("[malloc] Unable to allocate 99 bytes.")
        super().compute(running)


def test_memory_that_runs_out_is_nobodys_fault_and_the_batch_gets_narrower() -> None:
    rig = Rig(8, first_engine=OutOfMemory(8))

    sent = rig.turn(*(rows(name) for name in "abcdef"))
    rig.turn(*(rows(name) for name in "abcdef"))

    [returned] = [message for message in sent if isinstance(message, Returned)]
    assert sorted(map(name_of, returned.row_ids)) == list("abcdef")
    assert not any(isinstance(message, StepRaised) for message in sent)
    assert rig.engines[-1].widths == [3]


class OutOfBuffers(FakeEngine):
    def compute(self, running: list[FakeRow]) -> None:
        raise RuntimeError("[metal::malloc] Resource limit (499000) exceeded.")


@pytest.mark.parametrize("names", [("a",), ("a", "b", "c", "d")], ids=["alone", "more than fit"])
def test_a_process_that_runs_out_of_buffers_makes_room_for_a_fresh_one_and_no_request_is_to_blame(
    names: tuple[str, ...],
) -> None:
    rig = Rig(first_engine=OutOfBuffers(2))

    sent = rig.turn(*map(rows, names))

    returned = [row_id for message in sent if isinstance(message, Returned) for row_id in message.row_ids]
    assert sorted(map(name_of, returned)) == sorted(names)
    assert not any(isinstance(message, StepRaised | Refused) for message in sent)
    assert rig.loop.is_over(0.0)
    assert rig.loop.lifecycle.exit_code == exits.START_AGAIN


def test_rows_that_still_come_after_that_go_back_as_well() -> None:
    rig = Rig(first_engine=OutOfBuffers(2))
    rig.turn(rows("a"))

    assert Returned(ids("b")) in rig.turn(rows("b"))


def test_a_job_for_which_there_is_not_enough_memory_fails_alone_with_all_its_rows() -> None:
    rig = Rig(8, first_engine=OutOfMemory(8))
    job = Admit(tuple(row(name) for name in ("a", "a#1", "a#2")))

    sent = rig.turn(job)

    refused = [message for message in sent if isinstance(message, Refused)]
    assert sorted(name_of(message.row_id) for message in refused) == ["a", "a#1", "a#2"]
    assert {message.error.code for message in refused} == {"out_of_memory"}
    assert all("fewer than" in message.error.message for message in refused)
    assert rig.loop.is_idle


def test_a_narrowed_batch_widens_again_after_a_calm_while() -> None:
    rig = Rig(4, first_engine=OutOfMemory(4))
    rig.turn(*(rows(name) for name in "abcd"), now=1000.0)

    rig.turn(*(rows(name) for name in "abcd"), now=1001.0)
    rig.turn(now=1000.0 + CALM_S)

    assert rig.engines[-1].widths == [2, 4]


def test_a_worker_over_its_memory_limit_admits_fewer_rows_once_the_others_have_left() -> None:
    used = iter([0, *[1100] * 6, 0])  # over the limit it is measured twice
    rig = Rig(4, memory=MemoryWatch(lambda: next(used), 1000))

    rig.turn(*(rows(f"r{i}") for i in range(12)), now=10.0)
    for now in (11.0, 12.0, 13.0, 14.0):
        rig.turn(now=now)

    assert rig.engines[0].widths == [4, 4, 2, 2, 1]


def test_a_worker_far_over_its_memory_limit_makes_room_for_a_fresh_one() -> None:
    rig = Rig(2, memory=MemoryWatch(lambda: 1300, 1000))

    sent = rig.turn(rows("a"), now=10.0)

    assert sent == [StopClaiming(), Returned(ids("a"))]
    assert rig.loop.lifecycle.phase is Phase.EVACUATING


# --- Recycling and hanging ------------------------------------------------------------------------------------


def test_after_enough_tokens_no_row_is_admitted_and_those_inside_may_take_their_time() -> None:
    rig = Rig(2, max_generated_tokens=3)

    first = rig.turn(*(rows(name, max_tokens=3) for name in "abc"))
    second = rig.turn()
    third = rig.turn()

    assert first == []
    assert second == [StopClaiming()]
    assert third[0] == Returned(ids("c"))
    assert ended(third) == ["a", "b"]
    assert rig.loop.lifecycle.phase is Phase.RECYCLING


def test_an_engine_that_steps_but_never_delivers_is_stuck() -> None:
    class Idling(FakeEngine):
        def step(self, now: float) -> StepReport:
            return StepReport(
                finished=(), num_running=1, num_waiting=0, rows_computed=1, rows_useful=0, num_prefilled=0
            )

    rig = Rig(first_engine=Idling())

    rig.turn(rows("a"), now=10.0)
    before = [rig.watch.is_stuck(now) for now in (10.2, 10.4, 10.6, 10.8, 10.9)][-1]
    rig.turn(now=10.9)

    assert (before, rig.watch.is_stuck(11.1)) == (False, True)


def test_a_loop_without_rows_is_not_stuck() -> None:
    rig = Rig()

    rig.turn(rows("a", max_tokens=1), now=10.0)
    rig.turn(now=99.0)

    assert not rig.watch.is_stuck(200.0)


def test_the_loop_prints_its_state() -> None:
    rig = Rig()
    rig.turn(*(rows(name, max_tokens=9) for name in "abc"))

    assert repr(rig.loop) == "DecodeLoop(running=2 waiting=1)"
