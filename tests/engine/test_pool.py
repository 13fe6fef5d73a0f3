"""That a layer's slabs, which lie one after another in one array, keep each row's numbers wherever it is moved to."""

from __future__ import annotations

from itertools import count, islice
from random import Random
from unittest import mock

import mlx.core as mx
import pytest

from mlxq_worker.engine.kvcache import device, pool
from mlxq_worker.engine.kvcache.places import Places, PoolShape
from mlxq_worker.engine.kvcache.slot_allocator import Changes, SlabSize, Slot, SlotAllocator
from mlxq_worker.engine.kvcache.slots import Slots

NUM_HEADS, SIZE, NUM_ROWS = 2, 3, 8


def numbers(row: int, columns: range) -> mx.array:
    """(columns, H, 1, D) that no other row and column has."""
    each = mx.arange(columns.start, columns.stop, dtype=mx.float32)[:, None, None, None] + 4096 * row
    return mx.broadcast_to(each * mx.array([1, -1])[:, None, None], (len(columns), NUM_HEADS, 1, SIZE))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("many", [1, pool._MANY, 1 << 30], ids=["by numpy", "as it pays", "by mlx"])
def test_rows_find_what_they_wrote_wherever_they_have_been_moved(
    seed: int, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_MANY", many)
    # given rows that come, grow by many columns at a time, and leave, some of them in slabs of their own
    random, slots, allocator, ids = Random(seed), Slots(), SlotAllocator[int](), count()
    lengths: dict[int, int] = {}
    for _ in range(30):
        lengths = {row: length for row, length in lengths.items() if random.random() > 0.1}
        num_new = sum(random.random() < 0.3 for _ in range(NUM_ROWS - len(lengths)))
        new = {row: random.choice((3, 250, 600)) for row in islice(ids, num_new)}
        grown = {row: length + random.choice((1, 1, 1, 200)) for row, length in lengths.items()}

        # when
        apart = {row for row in {**grown, **new} if row % 4 == 1}
        slots.arrange(allocator.arrange({**grown, **new}, apart))
        runs = {row: range(lengths.get(row, 0), length) for row, length in {**grown, **new}.items()}
        if runs:
            written = mx.concatenate([numbers(row, columns) for row, columns in runs.items()])
            slots.write(Places.of((allocator[row], columns) for row, columns in runs.items()), written, written + 0.5)
        lengths = {**grown, **new}

        # then
        for row, length in lengths.items():
            slot = allocator[row]
            expected = numbers(row, range(length)).swapaxes(0, 2)  # (1, H, columns, D)
            keys, values = slots.read(slot.slab, slot.index, slot.index + 1, length)
            assert mx.array_equal(keys, expected)
            assert mx.array_equal(values, expected + 0.5)
            later, _ = slots.read(slot.slab, slot.index, slot.index + 1, length, length - 2)
            assert mx.array_equal(later, expected[:, :, -2:])


def test_tokens_of_several_slabs_are_written_by_one_index_each() -> None:
    shape = PoolShape.of(2, {0: SlabSize(2, 4), 1: SlabSize(1, 8)})
    places = Places.of([(Slot(1, 0), range(5, 7)), (Slot(0, 1), range(3, 4))])

    rows = places.rows[shape].flatten().tolist()

    # 2 slots x 2 heads x 4 columns of slab 0, then 1 slot x 2 heads x 8 columns of slab 1
    assert rows == [16 + 5, 16 + 8 + 5, 16 + 6, 16 + 8 + 6, 8 + 3, 8 + 4 + 3]
    assert places.next().rows[shape].flatten().tolist() == [row + 1 for row in rows]


def test_layers_of_the_same_shape_share_the_index() -> None:
    places = Places.of([(Slot(0, 1), range(3))])
    sizes = {0: SlabSize(2, 4)}

    assert places.rows[PoolShape.of(2, sizes)] is places.rows[PoolShape.of(2, dict(sizes))]
    assert places.rows[PoolShape.of(2, sizes)].size == 2 * places.rows[PoolShape.of(1, sizes)].size


@pytest.mark.parametrize("num_tokens", [3, 400])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("is_gpu", [False, True])
def test_only_much_float32_on_a_cpu_is_computed_to_be_written_at_once(
    num_tokens: int, dtype: mx.Dtype, is_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "is_gpu", lambda: is_gpu)
    slots, written = Slots(), mx.random.normal((num_tokens, NUM_HEADS, 1, 32)).astype(dtype)
    slots.arrange(Changes((), (), {0: SlabSize(1, 512)}))

    with mock.patch.object(mx, "eval", wraps=mx.eval) as computed:
        slots.write(Places.of([(Slot(0, 0), range(num_tokens))]), written, -written)

    keys, values = slots.read(0, 0, 1, num_tokens)
    assert mx.array_equal(keys, written.swapaxes(0, 2))
    assert mx.array_equal(values, -keys)
    assert computed.called == (num_tokens == 400 and dtype == mx.float32 and not is_gpu)
