"""How much a step asks of a GPU: figures that may fall and must not grow. `tests.bench.launches` prints them all."""

from __future__ import annotations

import math

import pytest
from tests.bench.launches import CASES, Figures, figures_of

MOST = {
    "a": Figures(launches=17, launches_outside=7, primitives=58, primitives_outside=19),
    "b": Figures(launches=17, launches_outside=8, primitives=58, primitives_outside=22),
    "c": Figures(launches=22, launches_outside=9, primitives=78, primitives_outside=27),
    "d": Figures(launches=17, launches_outside=8, primitives=58, primitives_outside=22),
    "d long": Figures(launches=49, launches_outside=8, primitives=139, primitives_outside=25),
    "e": Figures(launches=17, launches_outside=18, primitives=58, primitives_outside=35),
    "f": Figures(launches=28, launches_outside=11, primitives=89, primitives_outside=25),
    "sliding": Figures(launches=29, launches_outside=12, primitives=math.inf, primitives_outside=math.inf),
    "hybrid": Figures(launches=17, launches_outside=8, primitives=math.inf, primitives_outside=math.inf),
}
"""By case, at 32 rows. Of layers of several kinds the launches alone are held."""


@pytest.mark.parametrize("name", MOST)
def test_a_step_asks_no_more_of_a_gpu_than_it_did(name: str) -> None:
    figures = figures_of("mlxq", CASES[name])

    for part in Figures.__slots__:
        assert getattr(figures, part) <= getattr(MOST[name], part), (part, figures)


@pytest.mark.parametrize("name", ["a", "d", "e"])
def test_it_launches_no_more_than_mlx_lm_does(name: str) -> None:
    ours, theirs = figures_of("mlxq", CASES[name]), figures_of("batch_generator", CASES[name])

    assert ours.launches <= theirs.launches
    assert ours.launches_outside <= theirs.launches_outside
