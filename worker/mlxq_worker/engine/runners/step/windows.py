"""How the decoding rows of a step attend to their slots: which columns of which slab, and which of those count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby

import mlx.core as mx
import numpy as np

from mlxq_worker.engine.kvcache.places import Ahead, Made, copied, cuts
from mlxq_worker.engine.kvcache.slot_allocator import COLUMN_STEP
from mlxq_worker.engine.runners.attention import attend, is_fused
from mlxq_worker.engine.runners.step.spans import Span

_MAX_MASK_BYTES = 1 << 20
"""Masks are made for as many steps ahead as take this much."""
ALIGNMENT = COLUMN_STEP // 16
"""Of windows that are to stay the same for some steps: it divides the number of columns of every slab."""


@dataclass(frozen=True, slots=True)
class SlabRows:
    """How B decoding rows stand in S slots of a slab.

    Args:
        attend: attention of queries (S, heads, 1, D) to keys and values of these slots, with `scale`, `mask`, `sinks`.
        query_rows: (S,) which row stands in for each slot: its own, or any for a slot that is empty; `None` where all
            slots have rows of their own.
        result_rows: (B,) where each row's result stands among those of the slots, where `query_rows` is needed.
    """

    attend: Callable[..., mx.array]
    query_rows: mx.array | None
    result_rows: mx.array | None


class Window:
    """How the decoding rows of one slab attend to it: all slots up to the last one in use, over one window of columns.

    S slots, B decoding rows, W columns.

    Args:
        slab: which one.
        first: the index of its first row among all decoding rows.
        decoding: spans of one token, by rising slot.
        alignment: windows begin and end at multiples of so many columns. With more than 1 they stay the same for some
            steps, and there is always a mask.

    Attributes:
        views: what is seen of the slab where a token sees itself and so many columns less one before it; `None`: all.
    """

    def __init__(self, slab: int, first: int, decoding: Sequence[Span], alignment: int = 1) -> None:
        lengths = {span.slot.index: span.stop for span in decoding}
        self.rows = slice(first, first + len(lengths))
        self.num_slots = max(lengths) + 1
        has_holes = len(lengths) < self.num_slots
        # Of the first step. What an empty slot's stand-in sees counts for nothing: as much as the shortest row, so that
        # nobody sees more.
        shortest = min(lengths.values())
        in_slots = [lengths.get(slot, shortest) for slot in range(self.num_slots)]
        self._in_use, self._num_later = _InUse(slab, in_slots, alignment), 0
        self._masks: Made[int | None, Ahead[mx.array]] = Made(self._in_use.masks)
        rows = {slot: index for index, slot in enumerate(lengths)}
        self.slab_rows = SlabRows(
            mx.fast.scaled_dot_product_attention if is_fused() else attend,
            mx.array([rows.get(slot, 0) for slot in range(self.num_slots)]) if has_holes else None,
            mx.array(list(lengths)) if has_holes else None,
        )
        self._set_views()

    def next(self) -> Window:
        """The same rows one column further."""
        later = copied(self)
        later._num_later += 1
        later._set_views()
        return later

    def _set_views(self) -> None:
        self.views: Made[int | None, View] = Made(partial(self._in_use.view, self._masks, self._num_later))


class View:
    """Columns `first` to `last` of a slab's first S slots, and which of them count.

    Args:
        slab: which one.
        num_slots: S.
        first: the first column.
        last: the one behind the last.
        mask: (S, 1, 1, last - first), true where a column counts; `None` where all of them do.

    Attributes:
        masks: the same for so many heads of queries. Where attention is a single kernel it is laid out in full, (S,
            heads, 1, last - first), once a step: the kernel would have it copied like that in every layer.
        cuts: where it lies in a pool, by the form of the pool.
    """

    def __init__(self, slab: int, num_slots: int, first: int, last: int, mask: mx.array | None) -> None:
        self.first, self.last, self.mask = first, last, mask
        self.masks: Made[int, mx.array | None] = Made(partial(_mask_for, mask))
        self.cuts = Made(partial(cuts, slab, 0, num_slots, last, first))


def windows_of(decoding: Sequence[Span], alignment: int = 1) -> tuple[Window, ...]:
    """One for each slab, of spans of one token by rising slot. Several are aligned."""
    slabs = [list(group) for _, group in groupby(decoding, key=lambda span: span.slot.slab)]
    own = alignment if len(slabs) > 1 else 1
    ends = accumulate(map(len, slabs), initial=0)
    return tuple(Window(spans[0].slot.slab, first, spans, own) for first, spans in zip(ends, slabs, strict=False))


class _InUse:
    """How many columns of each of a slab's first slots are in use on the first of some steps; on each of the next it is
    one more. `alignment` is as a `Window`'s."""

    def __init__(self, slab: int, lengths: Sequence[int], alignment: int) -> None:
        self._slab, self._lengths, self._alignment = slab, lengths, alignment
        self._num_slots, self._shortest, self._longest = len(lengths), min(lengths), max(lengths)

    def columns(self, step: int, sliding: int | None) -> tuple[int, int]:
        """The first one that some row sees on a step and the one behind the last, where they are aligned."""
        first = 0 if sliding is None else max(0, self._shortest + step - sliding)
        last = self._longest + step
        return first - first % self._alignment, last + -last % self._alignment

    def masks(self, sliding: int | None) -> Ahead[mx.array]:
        """Which columns count, step by step."""
        at_first = np.array(self._lengths, dtype=np.int32)[:, None, None, None]  # (S, 1, 1, 1)

        def mask(step: int) -> mx.array:
            # Made by the host: a few thousand booleans, instead of kernels that make them.
            (first, last), in_use = self.columns(step, sliding), at_first + np.int32(step)
            seen = np.ones((self._num_slots, 1, 1, last - first), dtype=np.bool_)
            own = self._shortest + step  # the first column that not all rows have
            seen[..., own - first :] = np.arange(own, last, dtype=np.int32) < in_use
            if sliding is not None and sliding < last:
                seen &= np.arange(first, last, dtype=np.int32) >= in_use - np.int32(sliding)
            return mx.array(seen)

        return Ahead(mask, most=_MAX_MASK_BYTES // (self._num_slots * self._longest))

    def view(self, masks: Made[int | None, Ahead[mx.array]], step: int, sliding: int | None) -> View:
        """What is seen on a step. There is a mask where a row doesn't see all of it, or may not on the next step."""
        needs_mask = self._alignment > 1 or self._shortest < self._longest
        mask = masks[sliding].at(step) if needs_mask else None
        return View(self._slab, self._num_slots, *self.columns(step, sliding), mask)


def _mask_for(mask: mx.array | None, num_heads: int) -> mx.array | None:
    if mask is None or not is_fused() or 1 in (mask.shape[0], num_heads):
        return mask
    num_slots, _, _, width = mask.shape
    return mx.contiguous(mx.broadcast_to(mask, (num_slots, num_heads, 1, width)))
