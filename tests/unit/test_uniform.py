"""The random number per (seed, position): its range, its float32 form, and that it never changes between versions."""

from __future__ import annotations

import struct
from statistics import fmean, pvariance

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxq_worker.engine.sampling.uniform import Uniform, between_0_and_1, uniform

NUM_DRAWS = 10_000


def as_float32(number: float) -> float:
    (rounded,) = struct.unpack("f", struct.pack("f", number))
    return float(rounded)


@given(seed=st.integers(), position=st.integers(min_value=0, max_value=1 << 40))
def test_every_draw_lies_strictly_between_0_and_1_and_is_exact_in_float32(seed: int, position: int) -> None:
    draw = uniform(seed, position)

    assert 0 < draw < 1
    assert as_float32(draw) == draw


@pytest.mark.parametrize("bits", [0, (1 << 64) - 1], ids=["lowest", "highest"])
def test_the_extreme_hash_values_stay_inside_the_open_interval_in_float32(bits: int) -> None:
    draw = between_0_and_1(bits)

    assert as_float32(draw) == draw
    assert 0 < draw < 1


def test_seed_0_gives_the_published_splitmix64_sequence() -> None:
    # SplitMix64 seeded with 0; seed 0 hashes to counter 0.
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]

    assert [int(uniform(0, position) * (1 << 23)) for position in range(3)] == [word >> 41 for word in published]


@pytest.mark.parametrize(
    ("seed", "position", "draw"),
    [
        (0, 0, 0.883310854434967),
        (0, 1, 0.4315280318260193),
        (1, 0, 0.7497482895851135),
        (42, 7, 0.15289336442947388),
        (-1, 0, 0.6463542580604553),
        (2**64 - 1, 1000, 0.9290189146995544),
    ],
)
def test_a_recorded_seed_gives_the_same_draws_for_ever(seed: int, position: int, draw: float) -> None:
    assert uniform(seed, position) == draw


@given(rows=st.lists(st.tuples(st.integers(), st.integers(min_value=0, max_value=1 << 40)), min_size=1, max_size=8))
def test_many_rows_draw_at_once_what_each_draws_alone(rows: list[tuple[int, int]]) -> None:
    draws = Uniform([seed for seed, _ in rows]).at([position for _, position in rows])

    assert draws.tolist() == [uniform(seed, position) for seed, position in rows]


@given(
    seeds=st.lists(st.integers(), min_size=1, max_size=4),
    moves=st.lists(st.tuples(st.integers(min_value=-40, max_value=40), st.integers(0, 3)), min_size=1, max_size=30),
)
def test_rows_that_go_on_together_or_apart_or_back_draw_what_each_draws_alone(
    seeds: list[int], moves: list[tuple[int, int]]
) -> None:
    draws, positions = Uniform(seeds), [100 * index for index in range(len(seeds))]

    for steps, alone in moves:
        positions = [max(0, position + steps) for position in positions]
        positions[0] += alone  # mostly all of them go on by as many
        for _ in range(3):
            positions = [position + 1 for position in positions]
            assert draws.at(positions).tolist() == [uniform(*row) for row in zip(seeds, positions, strict=True)]


def test_a_seed_counts_modulo_two_to_the_64() -> None:
    assert uniform(-1, 3) == uniform((1 << 64) - 1, 3)
    assert uniform(5 + (1 << 64), 3) == uniform(5, 3)


@pytest.mark.parametrize(
    "draws",
    [
        pytest.param([uniform(7, position) for position in range(NUM_DRAWS)], id="over positions"),
        pytest.param([uniform(seed, 0) for seed in range(NUM_DRAWS)], id="over seeds"),
        pytest.param([uniform(n, n) for n in range(NUM_DRAWS)], id="over both at once"),
    ],
)
def test_mean_variance_and_deciles_are_those_of_a_uniform_distribution(draws: list[float]) -> None:
    # Bounds at five standard errors: sqrt(1/12/n) for the mean, sqrt(1/180/n) for the variance, n/10 a decile.
    deciles = [sum(int(10 * draw) == decile for draw in draws) for decile in range(10)]

    assert fmean(draws) == pytest.approx(0.5, abs=5 * (1 / 12 / NUM_DRAWS) ** 0.5)
    assert pvariance(draws) == pytest.approx(1 / 12, abs=5 * (1 / 180 / NUM_DRAWS) ** 0.5)
    assert all(count == pytest.approx(NUM_DRAWS / 10, abs=5 * (NUM_DRAWS * 0.09) ** 0.5) for count in deciles)


def test_neighbouring_seeds_and_positions_share_no_draws() -> None:
    # A counter that starts at the bare seed would give seed n+1 the numbers of seed n, one position later.
    draws = [uniform(seed, position) for seed in range(20) for position in range(20)]

    assert len(set(draws)) == len(draws)


def test_draws_one_position_or_one_seed_apart_are_uncorrelated() -> None:
    draws = [uniform(1, position) - 0.5 for position in range(NUM_DRAWS)]
    next_positions = [uniform(1, position + 1) - 0.5 for position in range(NUM_DRAWS)]
    next_seeds = [uniform(2, position) - 0.5 for position in range(NUM_DRAWS)]

    for others in (next_positions, next_seeds):
        correlation = 12 * fmean(a * b for a, b in zip(draws, others, strict=True))
        assert correlation == pytest.approx(0, abs=5 / NUM_DRAWS**0.5)
