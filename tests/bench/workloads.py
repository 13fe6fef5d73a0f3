"""What is asked of every rival: prompts as token ids and how many tokens each is to generate.

Lengths are fixed by the workload (no end token is in force), so all rivals do exactly the same useful work and their
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
class Item:
    """One request: its prompt's token ids, and the number of tokens to generate."""

    prompt: tuple[int, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Workload:
    """A named list of requests, in the order in which they are submitted."""

    name: str
    items: tuple[Item, ...]

    @property
    def num_tokens(self) -> int:
        """Useful tokens: what the requests asked for, together."""
        return sum(item.num_tokens for item in self.items)


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


WORKLOADS: dict[str, Callable[[random.Random], Workload]] = {
    make.__name__: make for make in (uniform, mixed, geometric, spread, short_answers, classification, shared_prefix)
}


def _prompt(rng: random.Random, length: int) -> tuple[int, ...]:
    return tuple(rng.randrange(FIRST_ID, LAST_ID) for _ in range(length))


def _clip(value: float, low: int, high: int) -> int:
    return min(max(round(value), low), high)
