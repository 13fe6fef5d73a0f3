"""How much a step asks of a GPU: figures that may fall and must not grow. `tests.bench.launches` prints them all."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_map
from tests.bench.launches import CASES, Figures, figures_of, llama
from tests.support.unrouted import unroute_all

from mlxq_worker.engine.kvcache.gpu_costs import PARTS_LAUNCHES
from mlxq_worker.engine.kvcache.pool import Pool

MOST = {
    "a": Figures(17, 7, 52, 17, 60, 357),
    "b": Figures(17, 8, 52, 19, 60, 364),
    "c": Figures(20, 9, 58, 21, 58, 394),
    "d": Figures(17, 8, 52, 19, 60, 372),
    "d long": Figures(34, 8, 99, 19, 98, 400),
    "e": Figures(17, 18, 52, 32, 60, 405),
    "f": Figures(28, 11, 97, 22, 0, 0),
    "sliding": Figures(29, 12, 70, 26, 88, 386),
    "hybrid": Figures(17, 8, 42.5, 19, 58, 375),
}
"""By case, at 32 rows: launches, primitives and Python's calls, each of a layer and outside. On the step on which rows
join calls aren't counted."""


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is routed there, and each route is a call."""
    unroute_all(monkeypatch)


@cache
def ours(name: str) -> Figures:
    """Of our engine; they are always the same."""
    return figures_of("mlxq", CASES[name])


@pytest.mark.parametrize("name", MOST)
def test_a_step_asks_no_more_of_a_gpu_than_it_did(name: str) -> None:
    figures = ours(name)

    for part in Figures.__slots__:
        assert getattr(figures, part) <= getattr(MOST[name], part), (part, figures)


@pytest.mark.parametrize("name", ["a", "d", "e", "f", "sliding", "hybrid"])
def test_it_launches_no_more_than_mlx_lm_does(name: str) -> None:
    own, theirs = ours(name), figures_of("batch_generator", CASES[name])

    assert own.launches <= theirs.launches
    # With one layer; with more all the more so.
    assert own.launches + own.launches_outside <= theirs.launches + theirs.launches_outside


def test_attention_in_parts_launches_as_much_more_as_is_reckoned() -> None:
    def in_16_bits(num_layers: int) -> Any:
        model = llama(num_layers)
        model.update(tree_map(lambda weight: weight.astype(mx.bfloat16), model.parameters()))
        return model

    in_parts = replace(CASES["d long"], build=in_16_bits, num_shared=16_384)  # tokens of half the bytes

    more = figures_of("mlxq", in_parts).launches - ours("b").launches

    assert more == PARTS_LAUNCHES


def test_one_more_kernel_and_one_more_call_in_every_layer_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    before, write = ours("a"), Pool.write
    monkeypatch.setattr(Pool, "write", lambda pool, places, keys, values: write(pool, places, keys + 0, values))

    figures = figures_of("mlxq", CASES["a"])

    assert figures.launches == before.launches + 1
    assert figures.primitives > before.primitives
    assert figures.calls == before.calls + 1
