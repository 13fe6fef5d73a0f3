"""Half precision and quantised weights on the packed path: answers are mlx-lm's own, but for near-ties.

Where an answer leaves mlx-lm's, the two tokens must be as good as equal in mlx-lm's logits after what both have in
common: no further apart than `NEAR_TIE` times what rounding does to mlx-lm's own logits there, which is how far they
are from those of the same weights in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import takewhile
from random import Random
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_map
from mlx_lm.models.cache import make_prompt_cache
from tests.support.engine_runs import run
from tests.support.row_specs import name_of, row_spec
from tests.support.tiny_models import VOCAB_SIZE, build
from tests.support.tried_models import engine_over, packing_of

from mlxq_worker.engine.api import RowSpec
from mlxq_worker.engine.kvcache import device

NEAR_TIE = 3
"""Two computations, each of whose two logits may be off by about as much."""
NUM_TOKENS = 12
SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}


@cache
def model_of(dtype: mx.Dtype, bits: int | None) -> Any:
    model = build("llama", **SIZES)
    in_dtype(model, dtype)
    if bits:
        nn.quantize(model, group_size=32, bits=bits)
    mx.eval(model.parameters())
    return model


def in_dtype(model: Any, dtype: mx.Dtype) -> None:
    """Have the model compute in this type; what is quantised stays as it is."""
    floats = (mx.float32, mx.bfloat16, mx.float16)
    model.update(tree_map(lambda each: each.astype(dtype) if each.dtype in floats else each, model.parameters()))


def specs() -> list[RowSpec]:
    """Rows of many lengths, half of them behind one prefix."""
    random = Random(11)
    shared = tuple(random.randrange(VOCAB_SIZE) for _ in range(70))
    return [
        row_spec(
            row_id=str(index),
            prompt_ids=(shared if index % 2 else ())
            + tuple(random.randrange(VOCAB_SIZE) for _ in range(3 + 5 * index)),
            max_tokens=NUM_TOKENS,
        )
        for index in range(10)
    ]


def logits_after(model: Any, token_ids: Sequence[int]) -> mx.array:
    """(V,) what mlx-lm computes for the next token, on its own caches."""
    logits: mx.array = model(mx.array([token_ids]), cache=make_prompt_cache(model))[0, -1].astype(mx.float32)
    return logits


def rounding_of(model: Any, token_ids: Sequence[int], dtype: mx.Dtype) -> float:
    """How far mlx-lm's logits after these tokens are from what they are in float32, at most."""
    rounded = logits_after(model, token_ids)
    in_dtype(model, mx.float32)
    exact = logits_after(model, token_ids)
    in_dtype(model, dtype)
    return float(mx.abs(rounded - exact).max().item())


@cache
def each_alone(dtype: mx.Dtype, bits: int | None) -> list[tuple[int, ...]]:
    """What mlx-lm answers to each row by itself."""
    return [alone(model_of(dtype, bits), spec) for spec in specs()]


def alone(model: Any, spec: RowSpec) -> tuple[int, ...]:
    """A row as mlx-lm decodes it by itself: the prompt at once, then token by token."""
    cache, tokens = make_prompt_cache(model), list[int]()
    logits = model(mx.array([spec.prompt_ids]), cache=cache)
    for _ in range(NUM_TOKENS):
        tokens.append(int(mx.argmax(logits[0, -1]).item()))
        logits = model(mx.array([tokens[-1:]]), cache=cache)
    return tuple(tokens)


@pytest.mark.parametrize("on_gpu", [False, True], ids=["in parts", "fused"])
@pytest.mark.parametrize(
    ("dtype", "bits"),
    [(mx.bfloat16, None), (mx.float16, None), (mx.bfloat16, 4), (mx.bfloat16, 8), (mx.float16, 4)],
    ids=["bfloat16", "float16", "4 bits", "8 bits", "4 bits in float16"],
)
def test_answers_are_those_of_mlx_lm_but_for_near_ties(
    dtype: mx.Dtype, bits: int | None, on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = model_of(dtype, bits), specs()
    assert packing_of(model).way
    monkeypatch.setattr(device, "is_gpu", lambda: on_gpu)

    answers = run(engine_over(model, max_num_seqs=6, max_num_batched_tokens=48), rows).tokens

    num_equal = 0
    for spec, theirs in zip(rows, each_alone(dtype, bits), strict=True):
        ours = answers[name_of(spec.row_id)]
        common = [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=True))]
        num_equal += len(common)
        if len(common) < NUM_TOKENS:
            before = [*spec.prompt_ids, *common]
            logits = logits_after(model, before)
            gap = float((logits[theirs[len(common)]] - logits[ours[len(common)]]).item())
            assert gap <= NEAR_TIE * rounding_of(model, before, dtype)
    assert num_equal >= 0.5 * NUM_TOKENS * len(rows)
