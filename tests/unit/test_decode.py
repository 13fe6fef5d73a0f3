"""The decode side alone: messages in, messages out, one turn at a time, without Redis and without threads."""

from __future__ import annotations

from queue import Empty

import pytest

from fake_engine import FakeEngine
from mlxq_worker.decode import DecodeLoop
from mlxq_worker.engine.row import RowSpec
from mlxq_worker.messages import (
    Admit,
    Cancel,
    Channel,
    Drained,
    Dropped,
    Ended,
    IoFailed,
    Refused,
    Returned,
    StepRaised,
    Stop,
    StopClaiming,
    ToDecode,
    ToIo,
)
from mlxq_worker.step_watch import StepWatch


class Rig:
    """A loop over fake engines two rows wide."""

    def __init__(self) -> None:
        self.channel = Channel.open()
        self.engines: list[FakeEngine] = []
        self.loop = DecodeLoop(self._new_engine, self.channel, 2, StepWatch(1.0))

    def _new_engine(self) -> FakeEngine:
        self.engines.append(FakeEngine(2))
        return self.engines[-1]

    def turn(self, *messages: ToDecode) -> list[ToIo]:
        for message in messages:
            self.channel.to_decode.put(message)
        self.loop.receive(0.0)
        self.loop.turn(0.0)
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


def row(row_id: str, prompt: str = "hello", max_tokens: int = 2) -> RowSpec:
    return RowSpec(
        row_id=row_id,
        prompt_ids=tuple(map(ord, prompt)),
        max_tokens=max_tokens,
        context_length=1000,
        end_tokens={},
        eos_ids=frozenset(),
        seed=0,
    )


def ended(sent: list[ToIo]) -> list[str]:
    return [message.result.row_id for message in sent if isinstance(message, Ended)]


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
    assert sorted(raised.row_ids) == ["a", "b"]
    assert "boom goes the batch" in raised.error
    assert rig.engines[0].is_closed
    assert rig.engines[1].widths == [1]
    assert ended(after) == []


def test_a_row_that_the_engine_refuses_does_not_cost_its_neighbour_the_place() -> None:
    rig = Rig()

    sent = rig.turn(rows("a", prompt="refuse"), rows("b", max_tokens=1), rows("c", max_tokens=1))

    assert [message.row_id for message in sent if isinstance(message, Refused)] == ["a"]
    assert ended(sent) == ["b", "c"]


def test_a_cancelled_row_ends_at_the_next_step_and_a_waiting_one_at_once() -> None:
    rig = Rig()
    rig.turn(*(rows(name, max_tokens=9) for name in "abc"))

    sent = rig.turn(Cancel(("a",)), Cancel(("c",)), Cancel(("unknown",)))

    assert [message for message in sent if isinstance(message, Dropped)] == [Dropped(("c",))]
    [result] = [message.result for message in sent if isinstance(message, Ended)]
    assert (result.row_id, result.stop_details.type, result.text) == ("a", "cancelled", "x")


def test_stopping_returns_the_waiting_rows_and_those_that_still_come() -> None:
    rig = Rig()
    rig.turn(*(rows(name, max_tokens=3) for name in "abc"))

    first = rig.turn(Stop("test"), Stop("again"))
    second = rig.turn(rows("d"))

    assert first == [StopClaiming(), Returned(("c",))]
    assert second[0] == Returned(("d",))
    assert ended(second) == ["a", "b"]


def test_the_loop_is_drained_only_once_its_last_row_has_ended() -> None:
    rig = Rig()

    rig.turn(rows("a"), Drained())
    midway = rig.loop.is_drained
    rig.turn()

    assert (midway, rig.loop.is_drained) == (False, True)


def test_an_error_of_the_io_thread_is_raised_on_this_one() -> None:
    rig = Rig()

    with pytest.raises(ConnectionError, match="gone"):
        rig.turn(IoFailed(ConnectionError("gone")))


def test_the_loop_prints_its_state() -> None:
    rig = Rig()
    rig.turn(*(rows(name, max_tokens=9) for name in "abc"))

    assert repr(rig.loop) == "DecodeLoop(running=2 waiting=1)"
