"""What is asked of every rival: prompts as token ids and how many tokens each is to generate.

Lengths are fixed by the workload (no end token is in force), so all systems do exactly the same useful work and their
greedy tokens can be compared one by one.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

FIRST_ID = 300
LAST_ID = 2000
"""Prompts are drawn from these ids: below them tokenizers keep bytes and special tokens."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one request samples; the defaults are greedy. The names are the request's fields."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0


GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class Item:
    """One request: its prompt's token ids, the number of tokens to generate, and how they are chosen."""

    prompt: tuple[int, ...]
    num_tokens: int
    sampling: Sampling = GREEDY


@dataclass(frozen=True, slots=True)
class Workload:
    """A named list of requests, in the order in which they are submitted."""

    name: str
    items: tuple[Item, ...]

    @property
    def num_tokens(self) -> int:
        """Useful tokens: what the requests asked for, together."""
        return sum(item.num_tokens for item in self.items)

    @property
    def is_greedy(self) -> bool:
        return all(item.sampling == GREEDY for item in self.items)

    def first(self, num_items: int | None) -> Workload:
        """The same workload, cut short; `None` leaves it whole."""
        return Workload(self.name, self.items[:num_items])

    @property
    def shared_length(self) -> int:
        """How many tokens all prompts begin with."""
        first, shared = self.items[0].prompt, 0
        while shared < len(first) and all(item.prompt[: shared + 1] == first[: shared + 1] for item in self.items):
            shared += 1
        return shared


def uniform(rng: random.Random) -> Workload:
    """Equal lengths: nothing for continuous batching to win, so what is left is the cost of a step."""
    return Workload("uniform", tuple(Item(_prompt(rng, 32), 64) for _ in range(128)))


def mixed(rng: random.Random) -> Workload:
    """Prompts of 16 to 512 tokens; outputs lognormal, between 8 and 200."""
    items = (Item(_prompt(rng, rng.randint(16, 512)), _clip(rng.lognormvariate(3.6, 0.8), 8, 200)) for _ in range(300))
    return Workload("mixed", tuple(items))


def geometric(rng: random.Random) -> Workload:
    """Short prompts; outputs geometric between 4 and 256: most are short, a few are very long."""
    items = (Item(_prompt(rng, rng.randint(8, 64)), _clip(rng.expovariate(1 / 48), 4, 256)) for _ in range(300))
    return Workload("geometric", tuple(items))


def spread(rng: random.Random) -> Workload:
    """500 requests whose outputs are spread evenly from 4 to 200 tokens."""
    return Workload("spread", tuple(Item(_prompt(rng, rng.randint(8, 64)), rng.randint(4, 200)) for _ in range(500)))


def short_answers(rng: random.Random) -> Workload:
    """Answers of 4 to 12 tokens."""
    items = (Item(_prompt(rng, rng.randint(16, 128)), rng.randint(4, 12)) for _ in range(400))
    return Workload("short_answers", tuple(items))


def classification(rng: random.Random) -> Workload:
    """Prompts of 64 to 256 tokens, answers of 1 to 3."""
    items = (Item(_prompt(rng, rng.randint(64, 256)), rng.randint(1, 3)) for _ in range(300))
    return Workload("classification", tuple(items))


def shared_prefix(rng: random.Random) -> Workload:
    """One prefix of 512 tokens for all, 32 tokens of their own, 32 generated."""
    prefix = _prompt(rng, 512)
    return Workload("shared_prefix", tuple(Item(prefix + _prompt(rng, 32), 32) for _ in range(200)))


def same_sampling(rng: random.Random) -> Workload:
    """As `uniform`, sampled: every row with the same parameters and a seed of its own."""
    items = (
        Item(_prompt(rng, 32), 64, Sampling(temperature=0.8, top_p=0.95, seed=rng.getrandbits(32))) for _ in range(128)
    )
    return Workload("same_sampling", tuple(items))


def own_sampling(rng: random.Random) -> Workload:
    """As `uniform`, sampled: every row with a temperature, top_p, top_k, min_p and seed of its own."""
    return Workload("own_sampling", tuple(Item(_prompt(rng, 32), 64, _sampling(rng)) for _ in range(128)))


WORKLOADS: dict[str, Callable[[random.Random], Workload]] = {
    make.__name__: make
    for make in (
        uniform,
        mixed,
        geometric,
        spread,
        short_answers,
        classification,
        shared_prefix,
        same_sampling,
        own_sampling,
    )
}


def _sampling(rng: random.Random) -> Sampling:
    return Sampling(
        temperature=rng.uniform(0.5, 1.2),
        top_p=rng.uniform(0.7, 1.0),
        top_k=rng.randint(10, 200),
        min_p=rng.uniform(0.0, 0.1),
        seed=rng.getrandbits(32),
    )


def _prompt(rng: random.Random, length: int) -> tuple[int, ...]:
    return tuple(rng.randrange(FIRST_ID, LAST_ID) for _ in range(length))


def _clip(value: float, low: int, high: int) -> int:
    return min(max(round(value), low), high)
