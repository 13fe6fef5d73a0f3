"""What a request does to its logits, written plainly for one row in numpy, and rows that ask for all of it."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.support.tiny_models import VOCAB_SIZE

from mlxq_worker.engine.api import RowSpec

Logits = NDArray[np.float32]


class Residues:
    """A constraint: the next id is the last one plus one, two or three, modulo five."""

    def __init__(self) -> None:
        self.last = 0

    def allows(self, token_id: int) -> bool:
        return (token_id - self.last) % 5 in (1, 2, 3)

    def allowed_ids(self) -> bytes:
        bits = [self.allows(token_id) for token_id in range(VOCAB_SIZE)]
        return np.packbits(bits, bitorder="little").tobytes()

    @property
    def is_complete(self) -> bool:
        return True

    def advance(self, token_id: int) -> None:
        self.last = token_id


def processed(logits: Logits, spec: RowSpec, token_ids: Sequence[int]) -> Logits:
    """The logits (V,) of the token that follows `token_ids`, as vLLM's formulas have it."""
    logits = logits.astype(np.float32).copy()
    ids = range(len(logits))
    if spec.allowed_token_ids is not None:
        logits[[token_id for token_id in ids if token_id not in spec.allowed_token_ids]] = -np.inf
    for *before, last in spec.bad_words:
        if list(token_ids)[len(token_ids) - len(before) :] == before:
            logits[last] = -np.inf
    if len(token_ids) < spec.min_tokens:
        logits[list(spec.end_tokens)] = -np.inf
    for token_id, bias in spec.logit_bias.items():
        logits[token_id] += bias
    if isinstance(spec.constraint, Residues):
        logits[[token_id for token_id in ids if not spec.constraint.allows(token_id)]] = -np.inf
    for token_id in {*spec.prompt_ids, *token_ids}:
        logits[token_id] *= 1 / spec.repetition_penalty if logits[token_id] > 0 else spec.repetition_penalty
    for token_id in set(token_ids):
        logits[token_id] -= spec.frequency_penalty * list(token_ids).count(token_id) + spec.presence_penalty
    return logits


def any_parameters(random: Random) -> dict[str, Any]:
    """Some of a request's parameters that change logits, chosen at random; a constraint among them has no past."""
    ids = range(VOCAB_SIZE)
    choices: dict[str, Any] = {
        "presence_penalty": random.uniform(-2, 2),
        "frequency_penalty": random.uniform(-2, 2),
        "repetition_penalty": random.uniform(0.5, 2),
        "logit_bias": {token_id: random.uniform(-9, 9) for token_id in random.sample(ids, random.randrange(1, 40))},
        # Of few ids, so that sequences get matched.
        "bad_words": tuple(tuple(random.choices(ids[:8], k=random.randrange(1, 4))) for _ in range(20)),
        "allowed_token_ids": frozenset(random.sample(ids, 40)),
        "min_tokens": random.randrange(1, 8),
        "constraint": Residues(),
    }
    return {name: choices[name] for name in choices if random.random() < 0.4}
