"""Requests that hold their answers to something, for the demo model, and how far a text is let through."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np

from mlxq.contract import Request, Sampling, Structure
from mlxq_worker.dialects.tool_format import tool_format_of
from mlxq_worker.engine.constraint import Constraint
from mlxq_worker.engine.reasoning import Reasoning
from mlxq_worker.model.load import DescribedModel, load_tokenizer_only
from mlxq_worker.text.structure import StructureCompiler


@cache
def demo() -> DescribedModel:
    return load_tokenizer_only()


@cache
def compiler() -> StructureCompiler:
    model = demo()
    return StructureCompiler(model.tokenizer, eos_ids(), model.vocab_size, tool_format_of(model.tokenizer))


def eos_ids() -> frozenset[int]:
    return demo().eos.ids(chat=True)


def encode(text: str) -> list[int]:
    return demo().tokenizer.encode(text, add_special_tokens=False)


def request(kind: Any = None, value: Any = None, sampling: Sampling | None = None, **fields: Any) -> Request:
    structure = Structure(kind=kind, value=value, param="response_format") if kind else None
    return Request(
        custom_id="r",
        endpoint="/v1/chat/completions",
        sampling=sampling or Sampling(),
        content_hash="",
        messages=(),
        structure=structure,
        **fields,
    )


def allows(constraint: Constraint, ids: Iterable[int]) -> list[bool]:
    mask = np.unpackbits(np.frombuffer(constraint.allowed_ids(), dtype=np.uint8), bitorder="little")
    return [bool(mask[token_id]) for token_id in ids]


def made(asked: Request, reasoning: Reasoning | None = None) -> Constraint:
    constraint = compiler().constraint(asked, eos_ids(), reasoning)
    assert constraint is not None
    return constraint


def verdict(asked: Request, text: str) -> str:
    """How far the constraint lets this text through: `refused`, `unfinished` or `complete`."""
    constraint = made(asked)
    for token_id in encode(text):
        if allows(constraint, [token_id]) != [True]:
            return "refused"
        constraint.advance(token_id)
    ends = set(allows(constraint, eos_ids()))
    assert len(ends) == 1, "all of the EOS set is allowed, or none of it"
    return "complete" if ends.pop() else "unfinished"
