"""Which model has its turn: a table of situations, and the bound over random loads."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from mlxq.errors import ConfigError
from mlxq_worker.supervision.model_policy import Backlog, Loaded, Policy, next_model

POLICY = Policy(max_wait_s=300, min_turn_s=60, drain_s=30, idle_unload_s=600)


def a(waiting: int = 0, running: int = 0, waited_s: float = 0) -> Backlog:
    return Backlog(model="a", waiting=waiting, running=running, waited_s=waited_s)


def b(waiting: int = 0, waited_s: float = 0) -> Backlog:
    return Backlog(model="b", waiting=waiting, waited_s=waited_s)


def c(waiting: int = 0, waited_s: float = 0) -> Backlog:
    return Backlog(model="c", waiting=waiting, waited_s=waited_s)


def loaded(turn_s: float = 0, idle_s: float = 0) -> Loaded:
    return Loaded(model="a", width=8, turn_s=turn_s, idle_s=idle_s)


@pytest.mark.parametrize(
    ("backlogs", "now_loaded", "chosen"),
    [
        # nothing is loaded
        ([a(), b(), c()], None, None),
        ([a(), b(1), c()], None, "b"),
        ([a(5), b(9), c(2)], None, "b"),
        ([a(5), b(9, 299), c(2, 300)], None, "c"),
        ([a(5), b(9, 400), c(2, 401)], None, "c"),
        # nobody else waits
        ([a(5, 8), b(), c()], loaded(turn_s=9999), "a"),
        ([a(), b(), c()], loaded(idle_s=599), "a"),
        ([a(), b(), c()], loaded(idle_s=600), None),
        # it has work, and others wait
        ([a(5, 8), b(999, 299), c(1, 10)], loaded(turn_s=9999), "a"),
        ([a(5, 8), b(999, 10), c(1, 300)], loaded(turn_s=59), "a"),
        ([a(5, 8), b(999, 10), c(1, 300)], loaded(turn_s=60), "c"),
        ([a(5, 8), b(1, 500), c(9, 400)], loaded(turn_s=60), "b"),
        # nothing waits for it any more: what runs is ended by draining it
        ([a(0, 0), b(2, 1), c(3, 1)], loaded(turn_s=1), "c"),
        ([a(0, 8), b(2, 1), c(3, 1)], loaded(turn_s=1), "c"),
        ([a(0, 9), b(2, 1), c(3, 1)], loaded(turn_s=1), "a"),
        ([a(0, 0), b(2, 300), c(3, 1)], loaded(turn_s=1), "b"),
    ],
)
def test_who_is_loaded_next(backlogs: list[Backlog], now_loaded: Loaded | None, chosen: str | None) -> None:
    assert next_model(backlogs, now_loaded, POLICY) == chosen


def test_a_model_that_is_left_aside_is_no_reason_to_do_anything() -> None:
    assert next_model([b(3)], loaded(turn_s=60), POLICY) == "b"
    assert next_model([], loaded(turn_s=60), POLICY) == "a"
    assert next_model([], None, POLICY) is None


@pytest.mark.parametrize("name", ["max_wait_s", "min_turn_s", "drain_s", "idle_unload_s"])
def test_no_time_is_negative(name: str) -> None:
    for value in (-1, float("nan")):
        with pytest.raises(ConfigError, match=rf"policy\.{name} must be"):
            Policy(**{name: value})


@dataclass
class World:
    """A second at a time: jobs come for some models, the one that is loaded answers some, a swap takes its time."""

    policy: Policy
    load_s: int
    rate: int
    left: dict[str, int]
    loaded: str | None = None
    swap_left_s: int = 0
    turn_s: float = 0.0
    idle_s: float = 0.0
    waited_s: dict[str, float] = field(default_factory=dict)
    longest_s: float = 0.0

    def second(self) -> None:
        for model, jobs in self.left.items():
            is_away = model != self.loaded
            self.waited_s[model] = self.waited_s.get(model, 0.0) + 1 if jobs and is_away else 0.0
        self.longest_s = max(self.longest_s, *self.waited_s.values())
        if self.swap_left_s:
            self.swap_left_s -= 1
            return
        self.turn_s += 1
        if self.loaded is not None:
            self.idle_s = 0.0 if self.left[self.loaded] else self.idle_s + 1
            self.left[self.loaded] = max(0, self.left[self.loaded] - self.rate)
        backlogs = [Backlog(model=m, waiting=n, waited_s=self.waited_s[m]) for m, n in self.left.items()]
        state = Loaded(model=self.loaded, width=8, turn_s=self.turn_s, idle_s=self.idle_s) if self.loaded else None
        chosen = next_model(backlogs, state, self.policy)
        if chosen != self.loaded:
            self.loaded, self.turn_s, self.idle_s = chosen, 0.0, 0.0
            self.swap_left_s = self.load_s if chosen else 0


@pytest.mark.parametrize("seed", range(20))
def test_no_model_waits_longer_than_the_bound_and_all_jobs_are_done(seed: int) -> None:
    # given some models whose jobs come in bursts, more of them than can be answered for a long while
    draw = random.Random(seed)
    policy = Policy(max_wait_s=draw.choice([0, 20, 100]), min_turn_s=draw.choice([0, 5, 40]), idle_unload_s=50)
    models = [f"m{index}" for index in range(draw.randint(2, 6))]
    world = World(policy, draw.choice([1, 8]), rate=3, left=dict.fromkeys(models, 0))

    # when
    for second in range(4000):
        if second < 2000 and draw.random() < 0.05:
            world.left[draw.choice(models)] += draw.randint(1, 400)
        world.second()
    while any(world.left.values()):
        world.second()

    # then, a second for each look
    slack_s = 2 * len(models)
    assert world.longest_s <= policy.longest_wait_s(len(models), world.load_s) + slack_s
