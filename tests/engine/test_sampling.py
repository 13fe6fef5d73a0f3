"""The batched sampler against a plain one for a single row, written in numpy the way vLLM describes its filters."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.support.engine_runs import decode, run
from tests.support.rounding import assert_steady
from tests.support.row_specs import row_spec
from tests.support.thorough import sample_of
from tests.support.tiny_models import VOCAB_SIZE
from tests.support.tried_models import engine_over, model_of

from mlxq_worker.engine.api import RowSpec
from mlxq_worker.engine.kvcache import device
from mlxq_worker.engine.rows.row import Row
from mlxq_worker.engine.sampling.batch_sampler import BatchSampler
from mlxq_worker.engine.sampling.token_sampler import Filter
from mlxq_worker.engine.sampling.uniform import Uniform, uniform

Probs = NDArray[np.float64]

UNFILTERED: list[dict[str, Any]] = [{"temperature": 1.0}, {"temperature": 0.3}, {"temperature": 2.5}]
FILTERED: list[dict[str, Any]] = [
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.0, "top_k": 1000},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 2.0, "top_k": 20, "top_p": 0.5},
    {"temperature": 0.5, "min_p": 0.02, "top_p": 0.9},
    {"temperature": 1.5, "min_p": 0.05, "top_k": 10, "top_p": 0.7},
]
GREEDY: list[dict[str, Any]] = [{"temperature": 0.0}, {"temperature": 0.0, "top_k": 3, "top_p": 0.5}]


@pytest.fixture(autouse=True, params=["cpu", "gpu"])
def on_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Every test takes both ways, wherever it runs."""
    is_gpu: bool = request.param == "gpu"
    monkeypatch.setattr(device, "is_gpu", lambda: is_gpu)
    return is_gpu


def row_at(position: int, spec: RowSpec) -> Row:
    """A row whose next token is the one at `position`."""
    row = Row(spec, decode)
    row.num_scheduled = position + 1
    return row


def sample(specs: Sequence[RowSpec], logits: mx.array, position: int = 0) -> list[int]:
    """One token for every row of the batch at once."""
    rows = tuple(row_at(position, spec) for spec in specs)
    return BatchSampler().sample(rows, mx.array(logits)).read().token_ids


def random_logits(num_rows: int, num_ids: int = VOCAB_SIZE, seed: int = 0) -> mx.array:
    return mx.random.normal((num_rows, num_ids), scale=2.0, key=mx.random.key(seed))


def filtered_distribution(logits: NDArray[Any], spec: RowSpec) -> Probs:
    """Temperature, min_p, top_k, top_p; renormalised after each."""
    probs = np.exp(logits.astype(np.float64) / spec.temperature)
    probs /= probs.sum()
    probs = keep(probs, probs >= spec.min_p * probs.max())
    if spec.top_k:
        ranks = np.argsort(np.argsort(-probs))
        probs = keep(probs, ranks < spec.top_k)
    more_likely = np.array([probs[probs > prob].sum() for prob in probs])
    return keep(probs, more_likely < spec.top_p)


def keep(probs: Probs, kept: NDArray[np.bool_]) -> Probs:
    left: Probs = np.where(kept, probs, 0.0)
    return cast(Probs, left / left.sum())


def reference_token(logits: NDArray[Any], spec: RowSpec, position: int) -> int:
    """Inverse transform sampling in vocabulary order."""
    if spec.temperature == 0:
        return int(np.argmax(logits))
    running = np.cumsum(filtered_distribution(logits, spec))
    return int(np.argmax(running > uniform(spec.seed, position)))


@pytest.mark.parametrize(
    "parameters",
    [
        pytest.param(UNFILTERED, id="unfiltered rows"),
        pytest.param(FILTERED, id="filtered rows"),
        pytest.param(FILTERED + GREEDY, id="filtered and greedy rows"),
        pytest.param(UNFILTERED + GREEDY, id="unfiltered and greedy rows"),
        pytest.param(UNFILTERED + FILTERED + GREEDY, id="all of them"),
    ],
)
def test_every_row_gets_the_token_of_the_reference(parameters: list[dict[str, Any]]) -> None:
    specs = [row_spec(seed=seed, **each) for seed in range(10) for each in parameters]

    for position in range(10):
        logits = random_logits(len(specs), seed=position)

        chosen = sample(specs, logits, position)

        rows = zip(np.array(logits), specs, strict=True)
        assert chosen == [reference_token(row, spec, position) for row, spec in rows]


LARGE_VOCABULARY: list[dict[str, Any]] = [
    {"temperature": 1.0, "top_k": 256},
    {"temperature": 1.5, "top_k": 257},
    {"temperature": 2.0, "top_k": 600, "top_p": 0.8},
    {"temperature": 2.0, "top_k": 100, "top_p": 0.8, "min_p": 0.01},
    {"temperature": 1.0, "top_p": 0.95},
    {"temperature": 5.0, "top_p": 0.99},
    {"temperature": 0.7, "min_p": 0.001, "top_p": 0.999},
    {"temperature": 1.0, "min_p": 0.02},
]


@pytest.mark.parametrize("searching", [True, False], ids=["by search", "by sorting"])
@pytest.mark.parametrize("num_ids", [1000, 1024, 1021])
def test_in_large_vocabularies_too_the_least_weights_are_those_of_the_reference(
    searching: bool, num_ids: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxq_worker.engine.sampling.token_sampler.searches", lambda num_ids: searching)
    specs = [row_spec(seed=seed, **each) for seed in range(4) for each in LARGE_VOCABULARY]
    logits = random_logits(len(specs), num_ids, seed=num_ids)

    chosen = sample(specs, logits)

    rows = zip(np.array(logits), specs, strict=True)
    assert chosen == [reference_token(row, spec, 0) for row, spec in rows]


@pytest.mark.parametrize("searching", [True, False], ids=["by search", "by sorting"])
@pytest.mark.parametrize(
    ("parameters", "kept"),
    [
        ({"top_k": 1}, 2),
        ({"top_k": 3}, 5),
        ({"top_k": 200}, 300),
        ({"top_k": 270}, 300),
        ({"top_p": 0.02}, 2),
        ({"min_p": 0.9}, 2),
    ],
    ids=str,
)
def test_equals_of_the_last_one_kept_are_kept_with_it(
    parameters: dict[str, Any], kept: int, searching: bool, on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxq_worker.engine.sampling.token_sampler.searches", lambda num_ids: searching)
    weights = mx.array([[1.0, 1.0, *[0.5] * 3, *[0.25] * 295, *[0.125] * 20]])

    parameters_of_all = Filter([row_spec(temperature=1.0, **parameters)])

    left = parameters_of_all.apply_on_gpu(weights) if on_gpu else parameters_of_all.apply(weights)

    assert (left > 0).tolist() == [[True] * kept + [False] * (320 - kept)]


@pytest.mark.parametrize("parameters", UNFILTERED + FILTERED + GREEDY, ids=str)
def test_a_row_samples_the_same_alone_and_beside_rows_of_every_other_kind(parameters: dict[str, Any]) -> None:
    neighbours = [row_spec(seed=100 + index, **each) for index, each in enumerate(UNFILTERED + FILTERED + GREEDY)]

    for seed in range(20):
        logits = random_logits(1 + len(neighbours), seed=seed)
        spec = row_spec(seed=seed, **parameters)

        assert sample([spec, *neighbours], logits)[0] == sample([spec], logits[:1])[0]


@pytest.mark.parametrize("parameters", UNFILTERED + FILTERED, ids=str)
def test_frequencies_follow_the_filtered_distribution(parameters: dict[str, Any]) -> None:
    num_draws, logits = 4_000, random_logits(1, num_ids=12, seed=5)
    expected = filtered_distribution(np.array(logits[0]), row_spec(**parameters)) * num_draws
    possible = expected > 0

    chosen = sample([row_spec(seed=seed, **parameters) for seed in range(num_draws)], mx.tile(logits, (num_draws, 1)))

    counts = np.bincount(chosen, minlength=12)
    assert counts[~possible].sum() == 0
    chi_square = float(((counts - expected)[possible] ** 2 / expected[possible]).sum())
    degrees = max(1, possible.sum() - 1)
    assert chi_square < degrees + 4 * (2 * degrees) ** 0.5  # mean and four standard deviations


@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": 0.0},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_p": 1e-6},
        {"temperature": 1.0, "min_p": 1.0},
        {"temperature": 1e-4},
    ],
    ids=str,
)
def test_parameters_that_leave_one_token_give_the_best_one(parameters: dict[str, Any]) -> None:
    logits = random_logits(50)

    chosen = sample([row_spec(seed=seed, **parameters) for seed in range(50)], logits)

    assert chosen == mx.argmax(logits, axis=-1).tolist()


@pytest.mark.parametrize("num_ids", [VOCAB_SIZE, 10_000], ids=["ranked", "searched"])
@pytest.mark.parametrize("more", [{}, {"top_k": 3}, {"min_p": 0.1}], ids=str)
def test_a_top_p_too_small_for_float32_gives_the_best_token(more: dict[str, Any], num_ids: int) -> None:
    logits = random_logits(20, num_ids)

    chosen = sample([row_spec(seed=seed, temperature=1.0, top_p=1e-300, **more) for seed in range(20)], logits)

    assert chosen == np.argmax(np.array(logits), axis=-1).tolist()


def test_a_temperature_too_large_for_float32_gives_every_allowed_token_the_same_chance() -> None:
    allowed = frozenset({1, 4})
    specs = [row_spec(seed=seed, temperature=1e308, allowed_token_ids=allowed) for seed in range(200)]

    chosen = sample(specs, random_logits(200))

    assert set(chosen) == allowed
    assert 70 < chosen.count(4) < 130


def test_half_precision_logits_are_sampled_as_what_they_are_in_float32() -> None:
    specs = [row_spec(seed=seed, temperature=1.0, top_p=0.9) for seed in range(50)]
    logits = random_logits(50).astype(mx.bfloat16)

    assert sample(specs, logits) == sample(specs, logits.astype(mx.float32))


@pytest.mark.parametrize("draw", [0.5 / (1 << 23), 1 - 0.5 / (1 << 23)], ids=["lowest draw", "highest draw"])
@pytest.mark.parametrize("parameters", UNFILTERED + FILTERED, ids=str)
def test_no_draw_picks_an_impossible_token(
    parameters: dict[str, Any], draw: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Uniform, "at", lambda _, positions: np.full(len(positions), draw, np.float32))
    first_and_last = {0: "first", VOCAB_SIZE - 1: "last"}
    spec = row_spec(min_tokens=1, end_tokens=first_and_last, **parameters)
    logits = random_logits(50)
    masked = np.array(logits)
    masked[:, list(first_and_last)] = -np.inf

    chosen = sample([spec] * 50, logits)

    assert all(filtered_distribution(row, spec)[token_id] > 0 for row, token_id in zip(masked, chosen, strict=True))


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def test_end_tokens_are_masked_up_to_min_tokens_and_only_in_rows_that_ask(temperature: float) -> None:
    # Nothing but the end tokens 3 and 4 has a chance, unless they are masked; then 5 is left.
    logits = mx.array([[0.0] * 3 + [90.0, 80.0, 60.0] + [0.0] * 4] * 2)
    asks = row_spec(min_tokens=2, end_tokens={3: "x", 4: "y"}, eos_ids=frozenset({3}), temperature=temperature)
    does_not = row_spec(end_tokens={3: "x", 4: "y"}, temperature=temperature)

    chosen = [sample([asks, does_not], logits, position) for position in range(4)]

    assert chosen == [[5, 3], [5, 3], [3, 3], [3, 3]]


@pytest.fixture(scope="module")
def model() -> Any:
    return model_of("llama")


def engine_specs(parameters: Sequence[dict[str, Any]]) -> list[RowSpec]:
    return [
        row_spec(
            row_id=str(index),
            prompt_ids=tuple(range(index, 2 * index + 1)),
            max_tokens=8 + index % 5,
            seed=index,
            **parameters[index % len(parameters)],
        )
        for index in range(12)
    ]


MIXES = pytest.mark.parametrize(
    "parameters",
    [
        pytest.param([{"temperature": 1.0}], id="unfiltered"),
        pytest.param(FILTERED + GREEDY, id="filtered and greedy"),
        pytest.param(UNFILTERED + FILTERED + GREEDY, id="all kinds"),
    ],
)


@MIXES
@pytest.mark.thorough
def test_no_token_that_is_compared_hangs_on_rounding(model: Any, parameters: list[dict[str, Any]]) -> None:
    assert_steady(model, lambda: run(engine_over(model, max_num_seqs=8), engine_specs(parameters)).tokens)


@MIXES
@pytest.mark.thorough
def test_tokens_are_the_same_alone_in_any_company_and_after_joining_at_any_step(
    model: Any, parameters: list[dict[str, Any]]
) -> None:
    specs = engine_specs(parameters)
    alone = run(engine_over(model, max_num_seqs=1), specs).tokens

    for width, company, one_per_step in sample_of(
        list(product((3, 8), (specs, specs[::-1]), (False, True))),
        [(3, specs, True), (3, specs[::-1], False), (8, specs, False), (8, specs[::-1], True)],
    ):
        assert run(engine_over(model, max_num_seqs=width), company, one_per_step=one_per_step).tokens == alone


def test_another_seed_gives_other_tokens_and_the_same_seed_the_same(model: Any) -> None:
    specs = [row_spec(row_id=str(n), prompt_ids=(1, 2), seed=n // 2, temperature=1.0, max_tokens=12) for n in range(8)]

    tokens = run(engine_over(model, max_num_seqs=8), specs).tokens

    assert len(set(tokens.values())) == 4
    assert all(tokens[str(n)] == tokens[str(n + 1)] for n in (0, 2, 4, 6))


@pytest.mark.parametrize("min_tokens", [0, 5])
def test_no_row_ends_on_an_end_token_before_min_tokens(model: Any, min_tokens: int) -> None:
    half = dict.fromkeys(range(VOCAB_SIZE // 2), "<end>")
    specs = [
        row_spec(row_id=str(n), seed=n, temperature=2.0, min_tokens=min_tokens, end_tokens=half) for n in range(16)
    ]

    outcome = run(engine_over(model, max_num_seqs=8), specs)

    lengths = [len(token_ids) for token_ids in outcome.tokens.values()]
    assert min(lengths) == min_tokens + 1
    assert max(lengths) < 100


@pytest.mark.parametrize("temperature", [1e-46, 1e-40, 1e-6])
def test_a_temperature_too_small_to_divide_by_is_greedy(temperature: float) -> None:
    logits = random_logits(8)

    specs = [row_spec(temperature=temperature, top_p=0.5, seed=seed) for seed in range(8)]

    assert sample(specs, logits) == np.argmax(np.array(logits), axis=-1).tolist()
