"""Attention taken in parts is attention."""

from __future__ import annotations

from typing import Literal

import mlx.core as mx
import numpy as np
import pytest
from tests.support.rounding import attention_tolerance

from mlxq_worker.engine.kvcache import device
from mlxq_worker.engine.runners import attention
from mlxq_worker.engine.runners.attention import Partial, attend, attend_in_part, attention_of_both

NUM_ROWS, SIZE, SCALE = 3, 8, 0.3


def random(*shape: int, seed: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("cut", [1, 5, 11])
@pytest.mark.parametrize("has_sinks", [False, True], ids=["no sinks", "sinks"])
@pytest.mark.parametrize("on_gpu", [False, True], ids=["step by step", "compiled"])
def test_two_parts_merged_are_the_attention_to_all_keys(
    num_heads: int, num_kv_heads: int, cut: int, has_sinks: bool, on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "is_gpu", lambda: on_gpu)
    sinks = random(num_heads, seed=9) if has_sinks else None
    queries = random(NUM_ROWS, num_heads, 2, SIZE, seed=0)
    keys, values = (random(NUM_ROWS, num_kv_heads, 12, SIZE, seed=seed) * 5 for seed in (1, 2))
    mask = mx.arange(12)[None, None, None] < mx.array([12, 7, 3])[:, None, None, None]

    first = attend_in_part(queries, keys[:, :, :cut], values[:, :, :cut], SCALE, mask[..., :cut])
    second = attend_in_part(queries[:1], keys[:1, :, cut:], values[:1, :, cut:], SCALE)
    rest = Partial.joined([second, second.nothing(NUM_ROWS - 1)])
    merged = attention_of_both(first, rest, sinks, queries)

    expected = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=SCALE, mask=mask, sinks=sinks)
    short = mx.fast.scaled_dot_product_attention(
        queries, keys[:, :, :cut], values[:, :, :cut], scale=SCALE, mask=mask[..., :cut], sinks=sinks
    )
    off = attention_tolerance(queries, keys, values, SCALE)
    np.testing.assert_allclose(merged[0], expected[0], rtol=0, atol=off)
    np.testing.assert_allclose(merged[1:], short[1:], rtol=0, atol=off)


def test_rows_with_one_query_each_can_be_taken_as_one_row_with_many() -> None:
    queries = random(NUM_ROWS, 4, 1, SIZE, seed=3)
    keys, values = (random(1, 2, 9, SIZE, seed=seed) for seed in (4, 5))

    together = attend_in_part(queries[:, :, 0].swapaxes(0, 1)[None], keys, values, SCALE).taken_apart()

    apart = [attend_in_part(queries[row : row + 1], keys, values, SCALE) for row in range(NUM_ROWS)]
    off = attention_tolerance(queries, keys, values, SCALE)
    joined = Partial.joined(apart).result(mx.float32)
    np.testing.assert_allclose(together.result(mx.float32), joined, rtol=0, atol=off)


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (6, 2)])
@pytest.mark.parametrize("num_queries", [1, 7, 300])
def test_causal_attention_is_that_of_the_last_keys_queries(num_heads: int, num_kv_heads: int, num_queries: int) -> None:
    queries = random(1, num_heads, num_queries, SIZE, seed=6)
    keys, values = (random(1, num_kv_heads, num_queries + 9, SIZE, seed=seed) * 5 for seed in (7, 8))

    attended = attend(queries, keys, values, SCALE, "causal")

    expected = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=SCALE, mask="causal")
    off = attention_tolerance(queries, keys, values, SCALE)
    np.testing.assert_allclose(attended, expected, rtol=0, atol=off)


@pytest.mark.parametrize("fused", [False, True], ids=["in parts", "a single kernel"])
@pytest.mark.parametrize(("num_queries", "sliding"), [(1, 4), (7, 4), (300, 4), (300, 150), (7, 1), (7, 500)])
def test_through_a_window_a_query_sees_the_last_keys_only(
    num_queries: int, sliding: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "is_fused", lambda: fused)
    queries = random(1, 4, num_queries, SIZE, seed=9)
    keys, values = (random(1, 2, num_queries + 9, SIZE, seed=seed) * 5 for seed in (10, 11))
    columns = mx.arange(num_queries + 9)
    seen = (columns[None] <= columns[9:, None]) & (columns[None] > columns[9:, None] - sliding)

    attended = attend(queries, keys, values, SCALE, "causal", sliding=sliding)

    expected = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=SCALE, mask=seen)
    off = attention_tolerance(queries, keys, values, SCALE)
    np.testing.assert_allclose(attended, expected, rtol=0, atol=off)


@pytest.mark.parametrize("mask", [None, "causal"])
def test_sinks_take_part_in_the_softmax_and_bring_nothing(mask: Literal["causal"] | None) -> None:
    queries = random(NUM_ROWS, 4, 5, SIZE, seed=12)
    keys, values = (random(NUM_ROWS, 2, 12, SIZE, seed=seed) * 5 for seed in (13, 14))
    sinks = mx.array([-30.0, 0.0, 3.0, 60.0])

    attended = attend(queries, keys, values, SCALE, mask, sinks=sinks)

    expected = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=SCALE, mask=mask, sinks=sinks)
    off = attention_tolerance(queries, keys, values, SCALE)
    np.testing.assert_allclose(attended, expected, rtol=0, atol=off)


def test_a_part_that_shows_a_query_nothing_counts_for_nothing() -> None:
    queries = random(1, 4, 2, SIZE, seed=15)
    keys, values = (random(1, 2, 12, SIZE, seed=seed) * 5 for seed in (16, 17))
    mask = mx.arange(5)[None] >= mx.array([0, 5])[:, None]  # the second query sees none of the first five

    first = attend_in_part(queries, keys[:, :, :5], values[:, :, :5], SCALE, mask)
    merged = first.merged(attend_in_part(queries, keys[:, :, 5:], values[:, :, 5:], SCALE)).result(mx.float32)

    whole = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=SCALE)
    rest = mx.fast.scaled_dot_product_attention(queries, keys[:, :, 5:], values[:, :, 5:], scale=SCALE)
    off = attention_tolerance(queries, keys, values, SCALE)
    np.testing.assert_allclose(merged[:, :, 0], whole[:, :, 0], rtol=0, atol=off)
    np.testing.assert_allclose(merged[:, :, 1], rest[:, :, 1], rtol=0, atol=off)
