"""The quick activations compute what mlx-lm's do, and only where they are asked for."""

from __future__ import annotations

from typing import Any
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models import activations as mlx_lm_activations
from mlx_lm.models.activations import swiglu as mlx_lm_swiglu
from tests.support.rounding import unit
from tests.support.unrouted import unroute_all

from mlxq_worker.engine.runners.on_cpu import activation
from mlxq_worker.engine.runners.on_cpu.activation import route_activations, swiglu
from mlxq_worker.engine.runners.on_cpu.quick import quick

GATE = mx.array([-1e30, -200.0, -88.0, -20.0, -1.0, -1e-6, 0.0, 1e-6, 0.5, 3.0, 88.0, 200.0, 1e30])
X = mx.linspace(-3.0, 3.0, GATE.size)
RTOL = 2 * (88 + 6) * unit()
"""An exponential is off by as much as its exponent: by 88 units at most, as float32 has none above. Then there are six
operations more, and two results are compared."""
SMALLEST = 3 * float(np.finfo(np.float32).tiny)
"""Below which float32 loses digits, times the largest of `X`."""


class Model:
    """Stands in for an mlx-lm model: this module defines it, and its SwiGLU."""

    def __call__(self, gate: mx.array, x: mx.array) -> mx.array:
        result: mx.array = globals()["swiglu"](gate, x)
        return result

    def modules(self) -> list[Model]:
        return [self]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of the two this module's model has used, call by call."""
    made: list[str] = []

    def noted(name: str, function: Any) -> Any:
        return lambda gate, x: (made.append(name), function(gate, x))[1]

    monkeypatch.setattr(activation, "_OF_MODELS", {"swiglu": noted("quick", activation.swiglu)})
    monkeypatch.setitem(globals(), "swiglu", noted("mlx-lm", mlx_lm_swiglu))
    return made


def test_it_is_mlx_lms_but_for_rounding_also_far_out() -> None:
    np.testing.assert_allclose(swiglu(GATE, X), mlx_lm_swiglu(GATE, X), rtol=RTOL, atol=SMALLEST)


def test_so_are_the_others() -> None:
    np.testing.assert_allclose(activation.silu(GATE), nn.silu(GATE), rtol=RTOL, atol=SMALLEST)
    for own, theirs in (
        (activation.precise_swiglu(X, GATE, X), mlx_lm_activations.precise_swiglu(X, GATE, X)),
        (activation.swiglu_oai(GATE, X), mlx_lm_activations.swiglu_oai(GATE, X)),
        (activation.swiglu_oai(X, GATE, alpha=0.5, limit=2.0), mlx_lm_activations.swiglu_oai(X, GATE, 0.5, 2.0)),
    ):
        np.testing.assert_allclose(own, theirs, rtol=RTOL, atol=SMALLEST)
    # mlx's adds 1 to a tangent that is nearly -1, so it is off by a unit of that.
    np.testing.assert_allclose(activation.gelu_approx(GATE), nn.gelu_approx(GATE), rtol=RTOL, atol=20 * 8 * unit())


@pytest.mark.parametrize("name", ["silu", "gelu_approx"])
def test_mlx_nns_are_used_by_a_model_inside_the_block(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unroute_all(monkeypatch)
    called: list[str] = []
    quick_one = getattr(activation, name)
    monkeypatch.setattr(activation, "_OF_NN", {name: lambda x: (called.append(name), quick_one(x))[1]})
    routes = route_activations(Model())
    with quick():
        inside = getattr(nn, name)(X)
    outside = getattr(nn, name)(X)
    for take_back in routes:
        take_back()

    assert called == [name]
    np.testing.assert_allclose(inside, outside, rtol=RTOL, atol=8 * unit())


def test_a_gate_that_is_not_a_number_gives_none() -> None:
    assert np.isnan(swiglu(mx.array([np.nan]), mx.array([1.0]))).all()


def test_models_use_it_inside_the_block_alone(calls: list[str]) -> None:
    # given
    model = Model()
    route_activations(model)

    # when
    before = model(GATE, X)
    with quick():
        inside = model(GATE, X)
    after = model(GATE, X)

    # then
    assert calls == ["mlx-lm", "quick", "mlx-lm"]
    np.testing.assert_array_equal(before, after)
    np.testing.assert_allclose(inside, before, rtol=RTOL, atol=SMALLEST)


def test_it_is_for_float32_alone(calls: list[str]) -> None:
    route_activations(Model())
    with quick():
        Model()(GATE.astype(mx.float16), X.astype(mx.float16))
    assert calls == ["mlx-lm"]


def test_routing_a_model_twice_changes_nothing(calls: list[str]) -> None:
    route_activations(Model())
    routed = globals()["swiglu"]
    route_activations(Model())
    assert globals()["swiglu"] is routed


def test_a_module_without_swiglu_is_left_as_it_is() -> None:
    assert route_activations(mock.Mock(modules=lambda: [object()])) == []  # builtins has none
