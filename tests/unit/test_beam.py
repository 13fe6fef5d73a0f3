"""Beam search over made-up language models, against scoring every sequence there is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from random import Random
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxq.contract import Beam
from mlxq_worker.engine.rows.beam import BeamSearch, Hypothesis

Ids = tuple[int, ...]
Model = Callable[[Ids], Sequence[float]]
"""Log probabilities of all ids after the tokens so far."""


def random_model(num_ids: int, seed: int) -> Model:
    def logprobs(token_ids: Ids) -> list[float]:
        random = Random(f"{seed} {token_ids}")
        weights = [math.exp(random.gauss(0, 1.5)) for _ in range(num_ids)]
        return [math.log(weight / sum(weights)) for weight in weights]

    return logprobs


def search(model: Model, beam: Beam, *, end_ids: set[int], limit: int, min_tokens: int = 0) -> BeamSearch:
    """Run a search to its end, giving it no more continuations than it asks for."""
    found = BeamSearch(beam, end_ids=frozenset(end_ids), limit=limit, min_tokens=min_tokens)
    while not found.is_over:
        continuations = []
        for hypothesis in found.running:
            ranked = sorted(enumerate(model(hypothesis.token_ids)), key=lambda pair: -pair[1])
            continuations.append(ranked[: found.num_continuations])
        found.advance(continuations)
    return found


def every_sequence(num_ids: int, *, end_ids: set[int], limit: int, min_tokens: int = 0) -> list[Ids]:
    """All complete sequences: up to the first end token, which comes after `min_tokens` others, or to the limit."""
    return [
        token_ids
        for length in range(1, limit + 1)
        for token_ids in product(range(num_ids), repeat=length)
        if not end_ids.intersection(token_ids[:-1])
        and (length == limit or token_ids[-1] in end_ids)
        and (length > min_tokens or token_ids[-1] not in end_ids)
    ]


def logprob_of(model: Model, token_ids: Ids) -> float:
    return sum(model(token_ids[:place])[token_id] for place, token_id in enumerate(token_ids))


def best_first(model: Model, sequences: list[Ids], length_penalty: float) -> list[tuple[Ids, float]]:
    """Sequences with their scores, the best first."""
    scores = [(each, logprob_of(model, each) / len(each) ** length_penalty) for each in sequences]
    return sorted(scores, key=lambda pair: -pair[1])


@given(
    num_ids=st.integers(2, 4),
    num_ends=st.integers(0, 3),
    limit=st.integers(1, 4),
    min_tokens=st.integers(0, 2),
    length_penalty=st.sampled_from([-1.0, 0.0, 0.6, 1.0, 2.0]),
    seed=st.integers(0, 1000),
)
def test_a_search_that_is_wide_enough_for_everything_finds_the_best_of_everything(
    num_ids: int, num_ends: int, limit: int, min_tokens: int, length_penalty: float, seed: int
) -> None:
    model, end_ids = random_model(num_ids, seed), set(range(min(num_ends, num_ids)))
    sequences = every_sequence(num_ids, end_ids=end_ids, limit=limit, min_tokens=min_tokens)
    # As wide as there are sequences of any one length, so that none is ever cut off.
    beam = Beam(width=max(1, num_ids**limit), length_penalty=length_penalty, early_stopping="never")

    found = search(model, beam, end_ids=end_ids, limit=limit, min_tokens=min_tokens)

    expected = best_first(model, sequences, length_penalty)
    assert [each.token_ids for each in found.finished] == [token_ids for token_ids, _ in expected]
    assert [found.score(each) for each in found.finished] == pytest.approx([score for _, score in expected])


@given(
    width=st.integers(1, 5),
    num_ends=st.integers(0, 3),
    limit=st.integers(1, 8),
    min_tokens=st.integers(0, 4),
    length_penalty=st.sampled_from([-1.0, 0.0, 0.6, 1.0, 2.0]),
    early_stopping=st.sampled_from([False, True, "never"]),
    seed=st.integers(0, 1000),
)
def test_every_hypothesis_is_a_true_one_and_they_come_in_order(
    width: int,
    num_ends: int,
    limit: int,
    min_tokens: int,
    length_penalty: float,
    early_stopping: bool | Literal["never"],
    seed: int,
) -> None:
    num_ids, end_ids = 7, set(range(num_ends))
    model = random_model(num_ids, seed)
    beam = Beam(width=width, length_penalty=length_penalty, early_stopping=early_stopping)

    found = search(model, beam, end_ids=end_ids, limit=limit, min_tokens=min_tokens)

    assert 1 <= len(found.finished) <= width
    assert len({each.token_ids for each in found.finished}) == len(found.finished)
    scores = [found.score(each) for each in found.finished]
    assert scores == sorted(scores, reverse=True)
    for each in found.finished:
        *before, last = each.token_ids
        assert not end_ids.intersection(before)
        assert len(each.token_ids) == limit or (last in end_ids and len(before) >= min_tokens)
        assert each.logprob == pytest.approx(logprob_of(model, each.token_ids))


@given(seed=st.integers(0, 1000), limit=st.integers(1, 8))
def test_a_search_of_width_1_without_end_ids_is_greedy(seed: int, limit: int) -> None:
    model, greedy = random_model(5, seed), ()
    for _ in range(limit):
        greedy = (*greedy, max(range(5), key=model(greedy).__getitem__))

    found = search(model, Beam(width=1), end_ids=set(), limit=limit)

    assert [each.token_ids for each in found.finished] == [greedy]


def fixed(*logprobs: float) -> Model:
    return lambda _: logprobs


def test_a_hypothesis_that_ends_below_the_first_width_places_is_dropped() -> None:
    found = BeamSearch(Beam(width=1), end_ids=frozenset({9}), limit=5)

    found.advance([[(1, -0.5), (9, -1.0)]])

    assert (found.running, found.finished) == ([Hypothesis((1,), -0.5)], [])


def test_each_id_of_the_set_ends_a_hypothesis_and_the_others_run_on() -> None:
    found = BeamSearch(Beam(width=3, early_stopping=True), end_ids=frozenset({7, 8, 9}), limit=5)

    found.advance([[(7, -0.1), (8, -0.2), (9, -0.3), (1, -0.4), (2, -0.5)]])

    assert [each.token_ids for each in found.finished] == [(7,), (8,), (9,)]
    assert [each.token_ids for each in found.running] == [(1,), (2,)]
    assert found.is_over
    assert found.num_continuations == 6


@pytest.mark.parametrize(
    ("early_stopping", "length_penalty", "is_over"),
    [(True, 1.0, True), (False, 1.0, True), ("never", 1.0, False), ("never", 0.0, True), (False, -1.0, True)],
)
def test_a_full_pool_ends_a_search_unless_a_longer_hypothesis_may_still_be_better(
    early_stopping: bool | Literal["never"], length_penalty: float, is_over: bool
) -> None:
    beam = Beam(width=1, early_stopping=early_stopping, length_penalty=length_penalty)
    found = BeamSearch(beam, end_ids=frozenset({9}), limit=100)

    found.advance([[(9, -0.5), (1, -1.0)]])  # what runs can't end better at this length, but at 100 tokens it can

    assert found.is_over == is_over


def test_what_runs_fills_up_what_is_finished_when_a_search_is_cut_short() -> None:
    found = BeamSearch(Beam(width=2), end_ids=frozenset({9}), limit=5)

    found.advance([[(9, -0.5), (1, -1.0), (2, -2.0)]])

    assert [each.token_ids for each in found.best(2)] == [(9,), (1,)]
    assert [each.token_ids for each in found.best(9)] == [(9,), (1,), (2,)]
    assert repr(found) == "BeamSearch(2 running, 1/2 finished)"


@pytest.mark.parametrize("length_penalty", [-1e6, 1e6])
def test_a_length_penalty_beyond_all_measure_still_gives_numbers(length_penalty: float) -> None:
    found = search(random_model(5, 0), Beam(width=2, length_penalty=length_penalty), end_ids={0}, limit=50)

    assert all(math.isfinite(found.score(each)) for each in found.finished)
