"""How far two right computations of the same numbers may lie apart: by their dtype and the number of operations.

Rounding changes the result of one operation by up to `unit(dtype)` of it. A sum of n products, taken in whatever
order a BLAS kernel likes, is the exact sum of products of which each factor is off by up to n units (Higham, Accuracy
and Stability of Numerical Algorithms, 3.1), and by about the square root of n of them as errors cancel (Higham and
Mary, A New Approach to Probabilistic Rounding Error Analysis, 2019). So what rounding does to a model is what happens
when its weights are off by that much, and how far this moves the logits depends on the model: a recurrent one spreads
it much further. `disturbed` does just that to a model; whatever a test compares with must be the same under it, or
within what it changes. What is wrong rather than rounded is off by a good part of the numbers' own size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import sqrt
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map
from numpy.typing import NDArray
from tests.support.thorough import sample_of

_SIGNIFICANT_BITS: Mapping[mx.Dtype, int] = {mx.float32: 24, mx.float16: 11, mx.bfloat16: 8}
_LONGEST_SUM = 256
"""Of the tiny models: over their widest layer, their vocabulary, or the tokens that one attends to."""
_NUM_DISTURBANCES = 3


def unit(dtype: mx.Dtype = mx.float32) -> float:
    """The most by which rounding once changes a number, relative to it."""
    return float(2.0 ** -_SIGNIFICANT_BITS[dtype])


def tolerance(num_operations: int, size: float, dtype: mx.Dtype = mx.float32) -> float:
    """How far two results may differ, each of which took so many operations in a row on numbers up to this size."""
    return 2 * sqrt(num_operations) * unit(dtype) * size


def attention_tolerance(queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> float:
    """How far two attentions may differ: queries (..., D) to keys and values (..., T, D), whatever sees what.

    An exponential is off, relative to itself, by as much as its exponent is; the exponents are sums over D, the results
    sums over T of values whose weights add up to 1.
    """
    num_keys, size = keys.shape[-2:]
    norms = [float(mx.sqrt((each * each).sum(axis=-1)).max()) for each in (queries, keys)]
    exponent, value = scale * norms[0] * norms[1], float(mx.abs(values).max())
    return tolerance(size, exponent * value) + tolerance(num_keys, value)


@contextmanager
def disturbed(model: Any, seed: int) -> Iterator[None]:
    """Within the block each weight is off by what two computations of the model may differ by through rounding."""
    weights, random, most = model.parameters(), np.random.default_rng(seed), 2 * sqrt(_LONGEST_SUM) * unit()

    def moved(weight: mx.array) -> mx.array:
        if not mx.issubdtype(weight.dtype, mx.floating):
            return weight
        return weight * (1 + most * mx.array(random.uniform(-1, 1, weight.shape).astype(np.float32)))

    model.update(tree_map(moved, weights))
    try:
        yield
    finally:
        model.update(weights)


def logprobs_of(model: Any, token_ids: Sequence[int]) -> tuple[NDArray[np.float32], float]:
    """Log probabilities (tokens, V) of what follows each token, and how far another right computation may be off."""
    return logprobs_of_each(model, [token_ids])[0]


def logprobs_of_each(model: Any, sequences: Sequence[Sequence[int]]) -> list[tuple[NDArray[np.float32], float]]:
    """The same of several sequences that go through the model side by side: what a shorter one is filled up with
    stands behind all that is looked at."""
    longest = max(map(len, sequences))
    ids = mx.array([[*each, *[0] * (longest - len(each))] for each in sequences])  # (N, T)

    def compute() -> NDArray[np.float32]:
        logits = model(ids)
        return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))  # (N, T, V)

    logprobs, offs = compute(), np.zeros(ids.shape)
    for seed in range(_NUM_DISTURBANCES):
        with disturbed(model, seed):
            offs = np.maximum(offs, np.abs(compute() - logprobs).max(axis=-1))
    lengths = list(map(len, sequences))
    return [(own[:length], float(off[:length].max())) for own, off, length in zip(logprobs, offs, lengths, strict=True)]


def smallest_gap(model: Any, *answers: tuple[Sequence[int], Sequence[int]]) -> float:
    """The least by which a token of these greedy answers, each given as prompt and answer, is ahead of the next best,
    in steps of what rounding may do.

    Below 2 the choice is a near-tie: another right computation may choose otherwise, and tests must not compare it.
    """
    gaps = []
    found = logprobs_of_each(model, [[*prompt, *answer] for prompt, answer in answers])
    for (prompt, _), (logprobs, off) in zip(answers, found, strict=True):
        best = np.sort(logprobs[len(prompt) - 1 : -1], axis=-1)[:, -2:]
        gaps.append(float((best[:, 1] - best[:, 0]).min()) / off)
    return min(gaps)


def assert_steady(model: Any, answers: Callable[[], object]) -> None:
    """Whatever is compared with these answers may be compared exactly: none of them hangs on rounding.

    `make thorough` disturbs the model more often: as the disturbances are always the same, only new answers can fail.

    Raises:
        AssertionError: a choice is a near-tie; take other prompts or seeds.
    """
    expected = answers()
    for seed in range(sample_of(_NUM_DISTURBANCES, 1)):
        with disturbed(model, seed):
            assert answers() == expected, "a choice is a near-tie: take other prompts or seeds"
