"""Half precision and quantised weights on the packed path, read from folders as they are published: answers are
mlx-lm's own, but for near-ties.

Where an answer leaves mlx-lm's, the two tokens must be as good as equal in mlx-lm's logits after what both have in
common: no further apart than `NEAR_TIE` times what rounding does to mlx-lm's own logits there, which is how far they
are from those of the same weights in float32.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from itertools import takewhile
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_map
from mlx_lm.models.cache import make_prompt_cache
from tests.support.engine_runs import run
from tests.support.model_folders import Weights, write_folder
from tests.support.row_specs import name_of, row_spec
from tests.support.tiny_models import VOCAB_SIZE
from tests.support.tried_models import engine_over, packing_of

from mlxq_worker.engine.api import RowSpec
from mlxq_worker.engine.kvcache import device
from mlxq_worker.model.load import load_model

NEAR_TIE = 3
"""Two computations, each of whose two logits may be off by about as much."""
NUM_TOKENS = 12
SIZES = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64, "head_dim": 16}


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
        for index in range(6)
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


def each_alone(model: Any) -> list[tuple[int, ...]]:
    """What mlx-lm answers to each row by itself."""
    return [alone(model, spec) for spec in specs()]


def alone(model: Any, spec: RowSpec) -> tuple[int, ...]:
    """A row as mlx-lm decodes it by itself: the prompt at once, then token by token."""
    cache, tokens = make_prompt_cache(model), list[int]()
    logits = model(mx.array([spec.prompt_ids]), cache=cache)
    for _ in range(NUM_TOKENS):
        tokens.append(int(mx.argmax(logits[0, -1]).item()))
        logits = model(mx.array([tokens[-1:]]), cache=cache)
    return tuple(tokens)


def assert_like_mlx_lm(model: Any, dtype: mx.Dtype, expected: Sequence[tuple[int, ...]]) -> None:
    rows = specs()
    assert packing_of(model).way

    answers = run(engine_over(model, max_num_seqs=4, max_num_batched_tokens=48), rows).tokens

    num_equal = 0
    for spec, theirs in zip(rows, expected, strict=True):
        ours = answers[name_of(spec.row_id)]
        common = [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=True))]
        num_equal += len(common)
        if len(common) < NUM_TOKENS:
            before = [*spec.prompt_ids, *common]
            logits = logits_after(model, before)
            gap = float((logits[theirs[len(common)]] - logits[ours[len(common)]]).item())
            assert gap <= NEAR_TIE * rounding_of(model, before, dtype)
    assert num_equal >= NUM_TOKENS * len(rows) / 3  # with two bits ties are many


@cache
def llama_of(weights: Weights) -> tuple[Any, list[tuple[int, ...]]]:
    """A model with these weights, and what mlx-lm answers with it."""
    with TemporaryDirectory() as folder:
        model = load_model(str(write_folder(Path(folder) / "model", "llama", weights, SIZES))).model
    return model, each_alone(model)


@pytest.mark.parametrize("on_gpu", [False, True], ids=["in parts", "fused"])
@pytest.mark.parametrize(
    "weights",
    [Weights(), Weights(mx.float16), Weights(bits=4), Weights(bits=8), Weights(mx.float16, bits=4)],
    ids=str,
)
def test_answers_are_those_of_mlx_lm_but_for_near_ties(
    weights: Weights, on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, expected = llama_of(weights)
    monkeypatch.setattr(device, "is_gpu", lambda: on_gpu)

    assert_like_mlx_lm(model, weights.dtype, expected)


@pytest.mark.parametrize(
    ("architecture", "weights"),
    [
        *(("llama", Weights(bits=bits)) for bits in (2, 3, 5, 6)),
        ("llama", Weights(bits=4, mode="mxfp4")),
        ("llama", Weights(bits=4, mode="nvfp4")),
        ("llama", Weights(bits=8, mode="mxfp8")),
        ("llama", Weights(recipe="mixed_3_6")),
        ("gemma3_text", Weights()),
        ("mamba2", Weights()),
        ("lfm2", Weights()),
        ("gpt_oss", Weights(bits=4, mode="mxfp4")),
        ("qwen3_moe", Weights(recipe="mixed_4_6")),
        ("qwen3_next", Weights(bits=4)),
        ("deepseek_v3", Weights(bits=4)),
        ("kimi_linear", Weights(bits=8)),
    ],
    ids=str,
)
def test_so_are_they_however_weights_are_packed_and_whatever_the_layers_keep(
    architecture: str, weights: Weights, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "model", architecture, weights, {} if architecture == "lfm2" else SIZES)

    model = load_model(str(folder)).model

    assert_packed_as_stated(model, folder)
    assert_like_mlx_lm(model, weights.dtype, each_alone(model))


def assert_packed_as_stated(model: nn.Module, folder: Path) -> None:
    """Each layer with packed weights has them as its folder's config.json says, for it alone or for all."""
    said = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization", {})
    packed = {name: module for name, module in model.named_modules() if hasattr(module, "bits")}
    for name, module in packed.items():
        own = said.get(name, said)
        assert (module.bits, module.group_size) == (own["bits"], own["group_size"])
        assert module.mode == own.get("mode", "affine")
    assert {name for name, each in said.items() if isinstance(each, dict)} <= packed.keys()
    assert bool(said) is bool(packed)
