"""The quick SwiGLU computes what mlx-lm's does, and only where it is asked for."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.activations import swiglu as mlx_lm_swiglu
from tests.support.rounding import unit

from mlxq_worker.engine.runners import activation
from mlxq_worker.engine.runners.activation import quick_swiglu, route_swiglu, swiglu

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


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of the two this module's model has used, call by call."""
    made: list[str] = []

    def noted(name: str, function: Any) -> Any:
        return lambda gate, x: (made.append(name), function(gate, x))[1]

    monkeypatch.setattr(activation, "swiglu", noted("quick", activation.swiglu))
    monkeypatch.setitem(globals(), "swiglu", noted("mlx-lm", mlx_lm_swiglu))
    return made


def test_it_is_mlx_lms_but_for_rounding_also_far_out() -> None:
    np.testing.assert_allclose(swiglu(GATE, X), mlx_lm_swiglu(GATE, X), rtol=RTOL, atol=SMALLEST)


def test_a_gate_that_is_not_a_number_gives_none() -> None:
    assert np.isnan(swiglu(mx.array([np.nan]), mx.array([1.0]))).all()


def test_models_use_it_inside_the_block_alone(calls: list[str]) -> None:
    # given
    model = Model()
    route_swiglu(model)

    # when
    before = model(GATE, X)
    with quick_swiglu():
        inside = model(GATE, X)
    after = model(GATE, X)

    # then
    assert calls == ["mlx-lm", "quick", "mlx-lm"]
    np.testing.assert_array_equal(before, after)
    np.testing.assert_allclose(inside, before, rtol=RTOL, atol=SMALLEST)


def test_it_is_for_float32_alone(calls: list[str]) -> None:
    route_swiglu(Model())
    with quick_swiglu():
        Model()(GATE.astype(mx.float16), X.astype(mx.float16))
    assert calls == ["mlx-lm"]


def test_routing_a_model_twice_changes_nothing(calls: list[str]) -> None:
    route_swiglu(Model())
    routed = globals()["swiglu"]
    route_swiglu(Model())
    assert globals()["swiglu"] is routed


def test_a_module_without_swiglu_is_left_as_it_is() -> None:
    route_swiglu(object())  # builtins has none
