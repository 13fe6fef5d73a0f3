"""What the padded runner relies on: mlx-lm's batch caches give a row to several indices when asked to (`filter`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, RotatingKVCache

NUM_ROWS, NUM_TOKENS, WINDOW = 3, 11, 8
INDICES = [2, 0, 0, 2]


def filled(cache: Any, seed: int) -> Any:
    """A cache of one row with random content, longer than the window and not as long as others."""
    mx.random.seed(seed)
    if isinstance(cache, CacheList):
        return CacheList(*(filled(each, seed) for each in cache.caches))
    if isinstance(cache, ArraysCache):
        for index in range(len(cache.cache)):
            cache[index] = mx.random.normal((1, 4, 5))
        return cache
    for _ in range(NUM_TOKENS + seed):
        cache.update_and_fetch(mx.random.normal((1, 2, 1, 4)), mx.random.normal((1, 2, 1, 4)))
    return cache


def arrays_in(state: Any) -> list[Any]:
    """All arrays of a cache's state."""
    if isinstance(state, mx.array):
        return [state.tolist()]
    return [array for part in state for array in arrays_in(part)] if isinstance(state, list | tuple) else []


@pytest.mark.parametrize(
    "make",
    [
        KVCache,
        lambda: RotatingKVCache(max_size=WINDOW),
        lambda: ArraysCache(2),
        lambda: CacheList(ArraysCache(2), KVCache(), RotatingKVCache(max_size=WINDOW)),
    ],
    ids=["plain", "sliding window", "recurrent", "list"],
)
def test_a_row_can_be_gathered_to_several_indices(make: Callable[[], Any]) -> None:
    single = [filled(make(), seed) for seed in range(NUM_ROWS)]
    batch = single[0].merge(single)
    rows = [arrays_in(batch.extract(index).state) for index in range(NUM_ROWS)]

    batch.filter(mx.array(INDICES))

    assert [arrays_in(batch.extract(index).state) for index in range(len(INDICES))] == [
        rows[index] for index in INDICES
    ]
    assert rows[0] != rows[2]
