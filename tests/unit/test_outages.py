"""Sitting out Redis's absences: growing pauses, and one sentence at each end."""

from __future__ import annotations

import pytest

from mlxq.errors import QueueError, QueueNotReady, QueueUnavailable
from mlxq.files.outages import MAX_PAUSE_S, NAP_S, Outages


class Clock:
    """Time that passes only in sleep."""

    def __init__(self) -> None:
        self.now = 0.0

    def read(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds <= NAP_S
        self.now += seconds


class Redis:
    """Is away until a given time, and remembers when it was tried."""

    def __init__(self, clock: Clock, back_at: float) -> None:
        self.tried_at: list[float] = []
        self.back_at = back_at
        self._clock = clock

    def use(self) -> None:
        self.tried_at.append(self._clock.now)
        if self._clock.now < self.back_at:
            raise QueueUnavailable("Redis can't be reached.")


def sat_out(redis: Redis, clock: Clock, told: list[str]) -> None:
    outages = Outages(told.append, clock=clock.read, sleep=clock.sleep)
    while not outages.attempt(redis.use):
        assert clock.now < 1000


def test_the_pauses_between_tries_double_up_to_a_limit() -> None:
    clock = Clock()
    redis = Redis(clock, back_at=60)

    sat_out(redis, clock, [])

    pauses = [after - before for before, after in zip(redis.tried_at, redis.tried_at[1:], strict=False)]
    assert pauses == [0.5, 1, 2, 4, 8, MAX_PAUSE_S, MAX_PAUSE_S, MAX_PAUSE_S]


def test_an_absence_is_told_once_and_so_is_its_end() -> None:
    clock, told = Clock(), list[str]()
    redis = Redis(clock, back_at=10)

    sat_out(redis, clock, told)
    redis.back_at = clock.now + 10
    sat_out(redis, clock, told)

    assert told == ["Redis can't be reached. Waiting until it is back.", "Redis answers again."] * 2


def test_the_pauses_begin_anew_with_every_absence() -> None:
    clock = Clock()
    outages = Outages(lambda sentence: None, clock=clock.read, sleep=clock.sleep)
    redis = Redis(clock, back_at=3)
    while not outages.attempt(redis.use):
        pass
    again_at = clock.now
    redis.back_at = again_at + 0.1

    while not outages.attempt(redis.use):
        pass

    assert clock.now == again_at + 0.5


def test_without_anybody_to_tell_an_absence_is_an_error() -> None:
    with pytest.raises(QueueUnavailable):
        Outages(None).attempt(Redis(Clock(), back_at=1).use)


def test_what_no_waiting_can_cure_is_an_error() -> None:
    def fail() -> None:
        raise QueueError("wrong kind of value")

    with pytest.raises(QueueError, match="wrong kind"):
        Outages(lambda sentence: None).attempt(fail)


def test_a_redis_that_was_never_there_is_an_error_at_once() -> None:
    with pytest.raises(QueueUnavailable):
        Outages(lambda sentence: None, has_been_there=False).attempt(Redis(Clock(), back_at=1).use)


def test_a_redis_that_answers_and_cannot_do_it_now_is_waited_for_from_the_start_and_after_it_went_away() -> None:
    clock, told = Clock(), list[str]()
    errors = [QueueNotReady("It loads."), QueueUnavailable("Gone.")]

    def use() -> None:
        if errors:
            raise errors.pop(0)

    outages = Outages(told.append, has_been_there=False, clock=clock.read, sleep=clock.sleep)
    while not outages.attempt(use):
        pass

    assert told == ["It loads. Waiting until it can again.", "Redis answers again."]


def test_an_absence_that_lasts_longer_than_the_limit_is_an_error_and_is_tried_a_last_time_at_its_end() -> None:
    clock = Clock()
    redis = Redis(clock, back_at=1e9)
    outages = Outages(lambda sentence: None, limit_s=10, clock=clock.read, sleep=clock.sleep)

    while clock.now < 10:
        assert not outages.attempt(redis.use)
    with pytest.raises(QueueUnavailable):
        outages.attempt(redis.use)

    assert redis.tried_at[-1] == 10
