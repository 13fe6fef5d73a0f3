"""Which prompts' tokens attend together, and that it changes nothing for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import mlx.core as mx
import numpy as np
import pytest
from tests.support.rounding import attention_tolerance

from mlxq_worker.engine.kvcache import device
from mlxq_worker.engine.kvcache.places import PoolShape
from mlxq_worker.engine.kvcache.prefix import Prefix
from mlxq_worker.engine.kvcache.slot_allocator import Changes, SlabSize, Slot
from mlxq_worker.engine.runners.slot_cache import SlotCache
from mlxq_worker.engine.runners.step.groups import Grouping, by_row, by_slab, by_state
from mlxq_worker.engine.runners.step.layout import Layout
from mlxq_worker.engine.runners.step.spans import MAX_PACKED_TOKENS, PackedPrompts, Span

NUM_HEADS, NUM_KV_HEADS, SIZE, SCALE = 4, 2, 8, 0.3
SLIDING = (None, 5, 12, 300)


def span(slot: int, start: int, stop: int, prefix: Prefix | None = None) -> Span:
    return Span(Slot(0, slot), start, stop, prefix)


def sizes_of_segments(*spans: Span) -> list[int]:
    """How many tokens attend at once, segment by segment."""
    return [len(segment) for segment in Layout([], spans).segments]


def attended(spans: list[Span], queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
    """What one layer of empty slots makes of these prompts' tokens."""
    cache = SlotCache()
    cache.slots.arrange(Changes((), (), {0: SlabSize(len(spans), 256)}))
    cache.begin_step(Layout([], spans))
    return cache.attend(queries, *cache.update_and_fetch(keys, values), SCALE)


def look_at(layout: Layout, shape: PoolShape) -> None:
    """Ask for all that layers ask for in a step."""
    assert len(layout.places.rows[shape]) == len(layout.positions)
    for window in layout.windows:
        for sliding in SLIDING:
            assert window.views[sliding].last <= 512


def test_prompts_of_about_the_same_length_attend_together() -> None:
    assert sizes_of_segments(span(0, 0, 17), span(1, 0, 32), span(2, 0, 20), span(3, 0, 33), span(4, 0, 48)) == [69, 81]


@pytest.mark.parametrize(
    "other",
    [span(1, 5, 35), span(1, 0, MAX_PACKED_TOKENS + 1), span(1, 0, 64)],
    ids=["goes on", "is long", "is twice as long"],
)
def test_a_chunk_that_goes_on_or_has_another_length_attends_by_itself(other: Span) -> None:
    assert sizes_of_segments(span(0, 0, 30), other) == [30, len(other)]


def test_a_prompt_behind_a_prefix_attends_by_itself_where_attention_is_a_single_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given
    monkeypatch.setattr(device, "is_gpu", lambda: True)
    prefix = Prefix((1, 2, 3), None)

    # when
    sizes = sizes_of_segments(span(0, 0, 30, prefix), span(1, 0, 30, prefix), span(2, 0, 29), span(3, 0, 30))

    # then
    assert sizes == [30, 30, 59]


@pytest.mark.parametrize("lengths", [[7, 7, 7], [16, 1, 9, 16], [128, 120]], ids=str)
def test_packed_prompts_that_attend_together_get_what_each_gets_alone(lengths: list[int]) -> None:
    # given
    mx.random.seed(0)
    queries, keys, values = (
        mx.random.normal((sum(lengths), h, 1, SIZE)) for h in (NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS)
    )
    ends = list(pairwise(accumulate(lengths, initial=0)))

    # when
    together = attended([span(slot, 0, length) for slot, length in enumerate(lengths)], queries, keys, values)
    alone = [attended([span(0, 0, b - a)], queries[a:b], keys[a:b], values[a:b]) for a, b in ends]

    # then
    off = max(
        attention_tolerance(queries[a:b, :, 0], keys[a:b, :, 0].swapaxes(0, 1), values[a:b], SCALE) for a, b in ends
    )
    np.testing.assert_allclose(together, mx.concatenate(alone), rtol=0, atol=off)


def test_shorter_packed_prompts_are_filled_up_behind_their_last_token() -> None:
    # given
    tokens = mx.arange(5)[:, None, None, None]

    # when
    rows = PackedPrompts([2, 3]).side_by_side(tokens)

    # then
    assert rows[:, 0, :, 0].tolist() == [[0, 1, 1], [2, 3, 4]]


@pytest.mark.parametrize("fused", [False, True], ids=["in parts", "a single kernel"])
@pytest.mark.parametrize("has_prefix", [False, True], ids=["whole", "behind a prefix"])
@pytest.mark.parametrize("num_steps", [1, 2, 4, 5, 20, 21, 40])
def test_a_step_that_goes_on_from_the_one_before_is_laid_out_as_if_anew(
    fused: bool, has_prefix: bool, num_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given rows in two slabs with holes, some of them behind a prefix where they lie apart
    monkeypatch.setattr(device, "is_gpu", lambda: fused)
    prefix = Prefix(tuple(range(9)), None) if has_prefix else None

    def decoding(further: int) -> list[Span]:
        starts = {Slot(0, 0): 3, Slot(0, 2): 9, Slot(1, 1): 300, Slot(1, 4): 290}
        return [
            Span(slot, start + further, start + further + 1, prefix if slot.slab else None, row=row)
            for row, (slot, start) in enumerate(starts.items())
        ]

    shape = PoolShape.of(NUM_KV_HEADS, {0: SlabSize(3, 256), 1: SlabSize(5, 512)})

    # when
    layout, anew = Layout(decoding(0)), Layout(decoding(num_steps))
    for _ in range(num_steps):
        look_at(layout, shape)  # what is made for several steps is made on the way
        layout = layout.next()

    # then
    assert layout.decoding == anew.decoding
    assert layout.positions.tolist() == anew.positions.tolist()
    assert layout.places.rows[shape].tolist() == anew.places.rows[shape].tolist()
    assert len(layout.whole_windows) == len(anew.whole_windows)
    for own, expected in zip(layout.windows, anew.windows, strict=True):
        for sliding in SLIDING:
            view, new_view = own.views[sliding], expected.views[sliding]
            assert (view.first, view.last) == (new_view.first, new_view.last)
            assert view.cuts[shape, 8, 4] == new_view.cuts[shape, 8, 4]
            assert (view.mask is None) == (new_view.mask is None)
            assert view.mask is None or mx.array_equal(view.mask, new_view.mask)
    assert (layout.sharing is None) == (anew.sharing is None)
    if layout.sharing and anew.sharing:
        for group, new_group in zip(layout.sharing.groups, anew.sharing.groups, strict=True):
            assert group.first_seen(300) == new_group.first_seen(300)
            assert mx.array_equal(group.mask(300), new_group.mask(300))


@pytest.mark.parametrize("make", [by_state, by_slab, by_row])
@pytest.mark.parametrize("rows", [(0, 1, 2), (2, 0)], ids=["all", "with a hole"])
def test_tokens_of_a_step_that_goes_on_are_grouped_as_if_anew(
    make: Callable[[Layout], Grouping], rows: Sequence[int]
) -> None:
    # given
    def decoding(further: int) -> list[Span]:
        starts = (3 + further, 9 + further, 300 + further)
        return [Span(Slot(0, index), starts[row], starts[row] + 1, row=row) for index, row in enumerate(rows)]

    layout = Layout(decoding(0))
    layout.derived(make)

    # when
    later, anew = layout.next().next(), Layout(decoding(2))

    # then
    own, expected = later.derived(make), anew.derived(make)
    hidden = mx.arange(len(rows))[:, None, None]
    assert len(own.groups) == len(expected.groups)
    results = []
    for group, new_group in zip(own.groups, expected.groups, strict=True):
        for argument, new_argument in ((later.positions, anew.positions), (hidden, hidden)):
            assert own.split(group, argument).tolist() == expected.split(new_group, new_argument).tolist()
        results.append(own.split(group, hidden))
    assert own.joined(results).tolist() == hidden.tolist()
