"""Rows in several slabs where attention is a single kernel: each attends to its own tokens, by a function that is
traced once for several steps."""

from __future__ import annotations

from collections.abc import Mapping
from unittest import mock

import mlx.core as mx
import numpy as np
import pytest
from tests.support.rounding import attention_tolerance

from mlxq_worker.engine.kvcache import device
from mlxq_worker.engine.kvcache.slot_allocator import COLUMN_STEP, Changes, SlabSize, Slot
from mlxq_worker.engine.runners.slot_cache import SlotCache
from mlxq_worker.engine.runners.step import slab_attention
from mlxq_worker.engine.runners.step.layout import Layout
from mlxq_worker.engine.runners.step.spans import Span
from mlxq_worker.engine.runners.step.windows import ALIGNMENT

NUM_HEADS, NUM_KV_HEADS, SIZE, SCALE = 4, 2, 8, 0.3
SIZES = {0: SlabSize(3, 256), 1: SlabSize(4, 512), 2: SlabSize(1, 1024)}
RAGGED = {Slot(0, 0): 5, Slot(0, 1): 40, Slot(0, 2): 236, Slot(1, 0): 300, Slot(1, 1): 301, Slot(2, 0): 700}
EVEN = {Slot(0, 0): 30, Slot(0, 1): 30, Slot(1, 0): 300}
WITH_HOLES = {Slot(0, 2): 5, Slot(1, 1): 300, Slot(1, 3): 290}


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "is_gpu", lambda: True)


def normal(*shape: int) -> mx.array:
    return mx.random.normal(shape)


def expected(queries: mx.array, keys: mx.array, values: mx.array, sinks: mx.array | None) -> mx.array:
    """Attention of one row, by the book: (heads, D) over (H, T, D)."""
    keys, values = (mx.repeat(each, NUM_HEADS // NUM_KV_HEADS, axis=0) for each in (keys, values))
    scores = SCALE * (queries[:, None] * keys).sum(axis=-1)  # (heads, T)
    with_sinks = scores if sinks is None else mx.concatenate([scores, sinks[:, None]], axis=1)
    weights = mx.softmax(with_sinks, axis=1)[:, : scores.shape[1]]
    return (weights[..., None] * values).sum(axis=1)


@pytest.mark.parametrize("has_sinks", [False, True], ids=["no sinks", "sinks"])
@pytest.mark.parametrize("sliding", [None, 1, 12, 290])
@pytest.mark.parametrize("starts", [RAGGED, EVEN, WITH_HOLES], ids=["ragged", "even", "with holes"])
def test_every_row_attends_to_its_own_tokens_step_after_step(
    starts: Mapping[Slot, int], sliding: int | None, has_sinks: bool
) -> None:
    # given rows of so many tokens, and what others have left behind them in their slots
    mx.random.seed(0)
    num_steps, num_rows = 20, len(starts)
    cache, sinks = SlotCache(sliding), normal(NUM_HEADS) if has_sinks else None
    sequences = [[normal(NUM_KV_HEADS, n + num_steps, SIZE) for _ in range(2)] for n in starts.values()]
    cache.slots.arrange(Changes((), (), SIZES))
    left = [Span(slot, 0, SIZES[slot.slab].num_columns) for slot in starts]
    cache.begin_step(Layout([], left))
    cache.update_and_fetch(*(normal(sum(map(len, left)), NUM_KV_HEADS, 1, SIZE) for _ in range(2)))
    cache.begin_step(Layout([], [Span(slot, 0, n) for slot, n in starts.items()]))
    keys, values = (
        mx.concatenate([own[side][:, :n].swapaxes(0, 1) for own, n in zip(sequences, starts.values(), strict=True)])
        for side in range(2)
    )
    cache.update_and_fetch(keys[:, :, None], values[:, :, None])

    # when
    layout = Layout([Span(slot, n, n + 1, row=row) for row, (slot, n) in enumerate(starts.items())])
    for step in range(num_steps):
        cache.begin_step(layout)
        queries = normal(num_rows, NUM_HEADS, 1, SIZE)
        own = [[each[:, : n + step + 1] for each in pair] for pair, n in zip(sequences, starts.values(), strict=True)]
        newest = (mx.stack([pair[side][:, -1:] for pair in own]) for side in range(2))
        attended = cache.attend(queries, *cache.update_and_fetch(*newest), SCALE, None, sinks)
        layout = layout.next()

        # then
        assert attended.shape == (num_rows, NUM_HEADS, 1, SIZE)
        for row, (row_keys, row_values) in enumerate(own):
            first = 0 if sliding is None else max(0, row_keys.shape[1] - sliding)
            seen = row_keys[:, first:], row_values[:, first:]
            off = attention_tolerance(queries[row, :, 0][None], seen[0][None], seen[1][None], SCALE)
            np.testing.assert_allclose(
                attended[row, :, 0], expected(queries[row, :, 0], *seen, sinks), rtol=0, atol=off, err_msg=str(step)
            )


def test_what_is_traced_serves_every_layer_until_other_columns_are_seen() -> None:
    # given two slabs whose windows end at a multiple of 16 columns after 4 steps and then after every 16
    starts, num_steps, num_layers = {Slot(0, 0): 28, Slot(1, 0): 316}, 30, 3
    layers = [SlotCache() for _ in range(num_layers)]
    for layer in layers:
        layer.slots.arrange(Changes((), (), SIZES))
    layout = Layout([Span(slot, n, n + 1, row=row) for row, (slot, n) in enumerate(starts.items())])

    with mock.patch.object(slab_attention, "attend_in_slab", wraps=slab_attention.attend_in_slab) as attention:
        for _ in range(num_steps):
            for layer in layers:
                layer.begin_step(layout)
                tokens = (normal(len(starts), NUM_KV_HEADS, 1, SIZE) for _ in range(2))
                layer.attend(normal(len(starts), NUM_HEADS, 1, SIZE), *layer.update_and_fetch(*tokens), SCALE)
            layout = layout.next()

    # on the first step, and where the windows grow
    assert attention.call_count == 3 * len(starts)


def test_aligned_windows_end_where_every_slab_may() -> None:
    assert COLUMN_STEP % ALIGNMENT == 0 < ALIGNMENT


def test_windows_are_aligned_only_where_something_is_traced() -> None:
    rows = [Span(Slot(0, 0), 4, 5), Span(Slot(1, 0), 300, 301)]
    chunk = Span(Slot(0, 1), 0, 7)

    lasts = {
        name: [window.views[None].last for window in layout.windows]
        for name, layout in {
            "alone": Layout(rows),
            "beside a chunk": Layout(rows, [chunk]),
            "in one slab": Layout(rows[:1]),
        }.items()
    }

    assert lasts == {"alone": [16, 304], "beside a chunk": [5, 301], "in one slab": [5]}
