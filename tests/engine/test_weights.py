"""Weights laid out for OpenBLAS: the same numbers at other places, and the same answers."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models.switch_layers import SwitchLinear
from tests.support.architectures import build
from tests.support.engine_runs import decode, run
from tests.support.rounding import tolerance
from tests.support.row_specs import row_spec

from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.engine.kvcache import device
from mlxq_worker.engine.runners.on_cpu import weights
from mlxq_worker.engine.runners.on_cpu.weights import lay_out_weights

INPUTS, OUTPUTS = 24, 40


@pytest.fixture
def on_zen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever processor this is, OpenBLAS has chosen its kernels for one on which laying out pays."""
    monkeypatch.setattr(weights, "core_name", lambda: "Zen")


def steps_of(array: mx.array) -> list[int]:
    """How many numbers apart an array's neighbours along each axis lie."""
    return [step // 4 for step in memoryview(array).strides or ()]


@pytest.mark.usefixtures("on_zen")
@pytest.mark.parametrize("num_tokens", [1, 3, 40])
def test_a_layer_keeps_its_numbers_and_gives_what_it_gave(num_tokens: int) -> None:
    layer, x = nn.Linear(INPUTS, OUTPUTS), mx.random.normal((num_tokens, 1, INPUTS))
    numbers, expected = np.array(layer.weight), layer(x)

    for _ in range(2):  # the second time there is nothing to do
        lay_out_weights(nn.Sequential(layer))

    assert steps_of(layer.weight) == [1, OUTPUTS]
    np.testing.assert_array_equal(layer.weight, numbers)
    np.testing.assert_allclose(layer(x), expected, rtol=0, atol=tolerance(INPUTS, float(mx.abs(x).max())))


@pytest.mark.usefixtures("on_zen")
def test_experts_are_laid_out_one_by_one() -> None:
    layer = SwitchLinear(INPUTS, OUTPUTS, 3)
    numbers = np.array(layer.weight)

    lay_out_weights(nn.Sequential(layer))

    assert steps_of(layer.weight) == [OUTPUTS * INPUTS, 1, OUTPUTS]
    np.testing.assert_array_equal(layer.weight, numbers)


@pytest.mark.usefixtures("on_zen")
def test_one_layer_after_another_is_laid_out() -> None:
    model = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(8)))
    mx.eval(model.parameters())
    mx.clear_cache()
    mx.reset_peak_memory()
    before, one = mx.get_active_memory(), 256 * 256 * 4

    lay_out_weights(model)

    assert mx.get_active_memory() <= before + one // 2
    assert mx.get_peak_memory() <= before + 2 * one


def half(model: nn.Module) -> None:
    model.set_dtype(mx.bfloat16)


def quantized(model: nn.Module) -> None:
    nn.quantize(model, group_size=32, bits=4)


@pytest.mark.usefixtures("on_zen")
@pytest.mark.parametrize("change", [half, quantized])
def test_other_types_of_weights_stay_where_they_are(change: Any) -> None:
    model = nn.Sequential(nn.Linear(64, 32))
    change(model)
    before = model.layers[0].weight

    lay_out_weights(model)

    assert model.layers[0].weight is before


@pytest.mark.parametrize(("is_gpu", "core"), [(True, "Zen"), (False, "SkylakeX"), (False, None)])
def test_where_it_does_not_pay_weights_stay_where_they_are(
    is_gpu: bool, core: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "is_gpu", lambda: is_gpu)
    monkeypatch.setattr(weights, "core_name", lambda: core)
    layer = nn.Linear(INPUTS, OUTPUTS)
    before = layer.weight

    lay_out_weights(nn.Sequential(layer))

    assert layer.weight is before


@pytest.mark.usefixtures("on_zen")
@pytest.mark.parametrize("architecture", ["llama", "lfm2", "gpt_oss", "qwen3_next"])
def test_a_model_answers_as_mlx_lm_does(architecture: str) -> None:
    model, ids = build(architecture), mx.array([5, 9, 2, 7, 1, 3])
    expected = [int(token) for token, _ in generate_step(ids, model, max_tokens=8)]

    row = row_spec(prompt_ids=tuple(ids.tolist()), max_tokens=8, end_tokens={})
    answer = run(BatchEngine(model, decode, max_num_seqs=2), [row]).tokens

    assert list(*answer.values()) == expected
    layers = [module.weight for module in model.modules() if isinstance(module, (nn.Linear, SwitchLinear))]
    assert all(steps_of(weight)[-2:] == [1, weight.shape[-2]] for weight in layers if weight.shape[-2] > 1)
