"""Answers that a model would write which picks any allowed token: walks through a constraint, by a seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
from tests.support.held_answers import demo, eos_ids

from mlxq_worker.engine.constraint import Constraint

CORPUS = Path(__file__).parents[1] / "corpus"
_MAX_TOKENS = 120
_CLOSING = ('"', "}", "]", ",", ":")


@dataclass(frozen=True)
class Walk:
    """How a walk ended: at an end token, in a place where no token is allowed, or at its limit."""

    end: Literal["complete", "dead", "cut"]
    text: str


def corpus_schemas() -> dict[str, Any]:
    """What pydantic and zod made, by name; `tests/corpus/make_schemas_*` write it."""
    files = sorted(CORPUS.glob("schemas_*.json"))
    return {
        name: schema
        for file in files
        for name, schema in json.loads(file.read_text(encoding="utf-8"))["schemas"].items()
    }


def walk(constraint: Constraint, random: Random) -> Walk:
    """One walk. It ends where it may more often than not, and likes tokens that close what is open."""
    ids: list[int] = []
    for _ in range(_MAX_TOKENS):
        allowed = allowed_ids(constraint)
        going_on = [token_id for token_id in allowed if token_id not in eos_ids()]
        if len(going_on) < len(allowed) and (not going_on or random.random() < 0.6):
            return Walk("complete", _text(ids))
        if not going_on:
            return Walk("dead", _text(ids))
        closing = [token_id for token_id in going_on if token_id in _closing_ids()]
        ids.append(random.choice(closing if closing and random.random() < 0.5 else going_on))
        constraint.advance(ids[-1])
    return Walk("cut", _text(ids))


def allowed_ids(constraint: Constraint) -> list[int]:
    """The ids that may come next."""
    bits = np.unpackbits(np.frombuffer(constraint.allowed_ids(), dtype=np.uint8), bitorder="little")
    return [int(token_id) for token_id in np.flatnonzero(bits)]


def _text(ids: Sequence[int]) -> str:
    return str(demo().tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


@cache
def _closing_ids() -> frozenset[int]:
    texts = ((token_id, _text([token_id])) for token_id in range(demo().vocab_size))
    return frozenset(token_id for token_id, text in texts if any(mark in text for mark in _CLOSING))
