"""Whether a model is packed is judged by what rounding does to it, at its dtype and depth."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_map
from mlx_lm.models import qwen3
from tests.support import architectures
from tests.support.architectures import OWN, SIZES
from tests.support.thorough import sample_of

from mlxq_worker.engine.runners.packed_model import Way
from mlxq_worker.engine.runners.trial import find_packing, packs

DEEP = sample_of(28, 16)
"""So many layers that what is left of float32 explains nothing any more in half precision: noise has to be measured."""

pytestmark = pytest.mark.thorough


def deep(architecture: str, dtype: mx.Dtype, bits: int | None) -> Any:
    """A random model of many layers, in this dtype or with weights of so many bits."""
    mx.random.seed(1)
    module = importlib.import_module(f"mlx_lm.models.{architecture}")
    sizes = {"intermediate_size": 64, "num_hidden_layers": DEEP}
    model = module.Model(
        module.ModelArgs.from_dict({"model_type": architecture, **SIZES, **OWN[architecture], **sizes})
    )
    model.update(tree_map(lambda weight: weight.astype(dtype), model.parameters()))
    if bits:
        nn.quantize(model, group_size=32, bits=bits)
    mx.eval(model.parameters())
    return model


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3_text", "mamba2"])
@pytest.mark.parametrize(
    ("dtype", "bits"),
    [(mx.float32, None), (mx.float16, None), (mx.bfloat16, None), (mx.bfloat16, 4)],
    ids=["float32", "float16", "bfloat16", "4 bits"],
)
def test_a_deep_model_is_packed_in_every_dtype(architecture: str, dtype: mx.Dtype, bits: int | None) -> None:
    assert find_packing(deep(architecture, dtype, bits)).way is Way.SHARED


class Altered(nn.Module):
    """A part of a model with something done to what comes out of it when rows have one token each, as in slots."""

    def __init__(self, part: nn.Module, alter: Callable[[mx.array], mx.array]) -> None:
        super().__init__()
        self.part = part
        self._alter = alter

    def __call__(self, inputs: mx.array, *args: Any, **options: Any) -> mx.array:
        result: mx.array = self.part(inputs, *args, **options)
        return self._alter(result) if inputs.shape[0] > 1 else result


def of_another_row(result: mx.array) -> mx.array:
    """What the next row should have got."""
    return mx.roll(result, 1, axis=0)


@pytest.mark.parametrize("alter", [of_another_row, mx.zeros_like], ids=["another row's", "nothing"])
@pytest.mark.parametrize(
    ("dtype", "bits"),
    [(mx.float32, None), (mx.bfloat16, None), (mx.bfloat16, 4)],
    ids=["float32", "bfloat16", "4 bits"],
)
def test_one_layer_out_of_many_that_attends_wrongly_is_seen(
    dtype: mx.Dtype, bits: int | None, alter: Callable[[mx.array], mx.array]
) -> None:
    model = deep("qwen3", dtype, bits)
    layer = model.model.layers[3]
    layer.self_attn = Altered(layer.self_attn, alter)

    packing = find_packing(model)

    assert packing.way is None
    assert any("computes something else" in reason for reason in packing.reasons)


@pytest.mark.parametrize("architecture", ["smollm3", "qwen3_vl", "mistral3", "gemma3", "gemma4", "mamba2", "gpt2"])
def test_models_whose_layers_lie_elsewhere_are_looked_into(architecture: str) -> None:
    assert packs(architectures.build(architecture))


def test_looking_into_a_model_leaves_its_modules_as_they_were() -> None:
    model = architectures.build("llama")
    before = {kind: kind.__call__ for kind in (nn.Linear, nn.RMSNorm, nn.Embedding)}

    find_packing(model)

    assert {kind: kind.__call__ for kind in before} == before


def test_a_trial_in_vain_leaves_the_model_s_classes_and_functions_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a model that nobody has packed in this process
    for name in ("scaled_dot_product_attention", "swiglu"):
        monkeypatch.setattr(qwen3, name, unrouted(getattr(qwen3, name)))
    model = deep("qwen3", mx.float32, None)
    layer = model.model.layers[3]
    layer.self_attn = Altered(layer.self_attn, mx.zeros_like)
    before = {type(module): type(module).__call__ for module in model.modules()}
    functions = qwen3.scaled_dot_product_attention, qwen3.swiglu

    assert find_packing(model).way is None

    assert {kind: kind.__call__ for kind in before} == before
    assert (qwen3.scaled_dot_product_attention, qwen3.swiglu) == functions


def unrouted(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same, without the marks of a route."""
    return lambda *args, **kwargs: function(*args, **kwargs)
