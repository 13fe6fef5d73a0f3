"""The I/O thread over a consumer that does what the test says: its tries while Redis is away, and how it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event
from typing import cast

import pytest
from redis import exceptions as redis_errors
from tests.support.redis_replies import REPLIES, as_raised
from tests.support.waiting import DEADLINE_S, wait_until

from mlxq_worker.jobs.consumer import Consumer
from mlxq_worker.jobs.io_thread import IoThread
from mlxq_worker.messages import Channel, Dropped, IoFailed, ToIo
from mlxq_worker.step_watch import StepWatch


class FakeConsumer:
    """Calls `on_turn` and `on_close`, and keeps what it receives."""

    def __init__(self, on_turn: Callable[[], object] = bool, on_close: Callable[[], object] = bool) -> None:
        self.on_turn = on_turn
        self.on_close = on_close
        self.num_turns = 0
        self.absences_s: list[float] = []
        self.received: list[ToIo] = []

    def turn(self, now: float) -> float:
        self.num_turns += 1
        self.on_turn()
        return 1.0

    def receive(self, message: ToIo, now: float) -> None:
        self.received.append(message)

    def reconnected(self, now: float, away_s: float) -> None:
        self.absences_s.append(away_s)

    def close(self, now: float) -> None:
        self.on_close()


def a_thread(consumer: FakeConsumer, **limits_s: float) -> tuple[IoThread, Channel]:
    channel = Channel.open()
    return IoThread(cast("Consumer", consumer), channel, StepWatch(1.0), **limits_s), channel


def redis_is_away() -> None:
    raise redis_errors.ConnectionError("gone")


def test_rows_that_end_while_redis_is_away_cause_no_tries_of_their_own() -> None:
    consumer = FakeConsumer(on_turn=redis_is_away)
    thread, channel = a_thread(consumer, first_backoff_s=DEADLINE_S)

    thread.start()
    for row_id in map(str, range(5)):
        channel.to_io.put(Dropped((row_id,)))
        wait_until(lambda row_id=row_id: Dropped((row_id,)) in consumer.received, "the message to be received")
    thread.close()

    assert consumer.num_turns == 1


def test_the_consumer_hears_how_long_redis_was_away_from_the_first_failed_try_on() -> None:
    is_away = Event()
    is_away.set()
    consumer = FakeConsumer(on_turn=lambda: redis_is_away() if is_away.is_set() else None)
    thread, _ = a_thread(consumer, first_backoff_s=0.01)

    started = time.monotonic()
    thread.start()
    wait_until(lambda: consumer.num_turns >= 4, "some tries")
    is_away.clear()
    num_before = len(consumer.absences_s)
    wait_until(lambda: len(consumer.absences_s) > num_before, "the next try")
    thread.close()

    assert consumer.absences_s == sorted(consumer.absences_s)
    assert 0.01 + 0.02 + 0.04 <= consumer.absences_s[-1] <= time.monotonic() - started


@pytest.mark.parametrize("reply", REPLIES.values())
def test_no_refusal_of_redis_ends_the_thread(reply: str) -> None:
    errors = [as_raised(reply)] * 3

    def refuse_at_first() -> None:
        if errors:
            raise errors.pop()

    consumer = FakeConsumer(on_turn=refuse_at_first)
    thread, _ = a_thread(consumer, first_backoff_s=0.001)

    thread.start()
    wait_until(lambda: consumer.num_turns >= 4, "the turn after the refused ones")
    thread.close()


def test_between_two_tries_there_is_no_more_than_a_quarter_of_a_lease() -> None:
    consumer = FakeConsumer(on_turn=redis_is_away)
    thread, _ = a_thread(consumer, first_backoff_s=0.001, lease_s=0.01)

    thread.start()
    wait_until(lambda: consumer.num_turns >= 100, "many tries")
    thread.close()


def test_what_no_waiting_cures_goes_to_the_decode_thread() -> None:
    def fail() -> None:
        raise as_raised("ERR unknown command")

    thread, channel = a_thread(FakeConsumer(on_turn=fail))
    thread.start()

    assert isinstance(channel.to_decode.get(timeout=DEADLINE_S), IoFailed)
    with pytest.raises(redis_errors.ResponseError, match="unknown command"):
        thread.close()


def test_a_script_that_redis_forgot_in_the_wrong_moment_is_no_reason_to_end() -> None:
    errors = [redis_errors.NoScriptError("No matching script.")]

    def forget_once() -> None:
        if errors:
            raise errors.pop()

    consumer = FakeConsumer(on_turn=forget_once)
    thread, _ = a_thread(consumer, first_backoff_s=0.01)

    thread.start()
    wait_until(lambda: consumer.absences_s, "the turn after the failed one")
    thread.close()


def test_a_redis_that_stays_away_while_closing_is_given_up_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("ERROR", logger="rq.worker")
    thread, _ = a_thread(FakeConsumer(on_close=redis_is_away), close_s=0.0)

    thread.start()
    thread.close()

    assert not thread.is_alive()
    assert "Redis is away: the jobs go back" in caplog.text


def test_a_redis_that_hangs_while_closing_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("ERROR", logger="rq.worker")
    answers = Event()
    thread, _ = a_thread(FakeConsumer(on_close=lambda: answers.wait(DEADLINE_S)), close_timeout_s=0.05)

    thread.start()
    thread.close()
    answers.set()
    thread.join(DEADLINE_S)

    assert "kept us waiting" in caplog.text
