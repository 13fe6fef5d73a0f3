"""How the decoding rows of a step attend to their slots: which columns of which slab, and which of those count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby

import mlx.core as mx
import numpy as np

from mlxq_worker.engine.kvcache.places import Ahead, Made, copied, cuts
from mlxq_worker.engine.runners.attention import attend, is_fused
from mlxq_worker.engine.runners.step.spans import Span

_MAX_MASK_BYTES = 1 << 20
"""Masks are made for as many steps ahead as take this much."""


class Window:
    """How the decoding rows of one slab attend to it: all slots up to the last one in use, over one window of columns.

    S slots, B decoding rows, W columns.

    Args:
        slab: which one.
        first: the index of its first row among all decoding rows.
        decoding: spans of one token, by rising slot.

    Attributes:
        views: what is seen of the slab where a token sees itself and so many columns less one before it; `None`: all.
        attend: attention of queries (S, heads, 1, D) to keys and values of it, with `scale`, `mask` and `sinks`.
    """

    def __init__(self, slab: int, first: int, decoding: Sequence[Span]) -> None:
        lengths = {span.slot.index: span.stop for span in decoding}
        self.slab = slab
        self.attend: Callable[..., mx.array] = mx.fast.scaled_dot_product_attention if is_fused() else attend
        self.rows, self.num_rows = slice(first, first + len(lengths)), len(lengths)
        self.num_slots = max(lengths) + 1
        has_holes = len(lengths) < self.num_slots
        # Of the first step. What an empty slot's stand-in sees counts for nothing: as much as the shortest row, so that
        # nobody sees more.
        self._shortest, self._longest = min(lengths.values()), max(lengths.values())
        in_slots = [lengths.get(slot, self._shortest) for slot in range(self.num_slots)]
        self._num_later = 0
        self._masks: Made[int | None, Ahead[mx.array]] = Made(partial(_masks, in_slots))
        rows = {slot: index for index, slot in enumerate(lengths)}
        # (S,) which decoding row stands in for each slot: its own, or any for a slot that is empty
        self.query_rows = mx.array([rows.get(slot, 0) for slot in range(self.num_slots)]) if has_holes else None
        self.result_rows = mx.array(list(lengths)) if has_holes else None  # (B,) where each row's result stands
        self._set_views()

    def next(self) -> Window:
        """The same rows one column further."""
        later = copied(self)
        later._num_later += 1
        later._set_views()
        return later

    def _set_views(self) -> None:
        numbers = self.slab, self.num_slots, self._shortest, self._longest, self._num_later
        self.views: Made[int | None, View] = Made(partial(_view, self._masks, *numbers))


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


def windows_of(decoding: Sequence[Span]) -> tuple[Window, ...]:
    """One for each slab, of spans of one token by rising slot."""
    first, windows = 0, []
    for slab, group in groupby(decoding, key=lambda span: span.slot.slab):
        windows.append(Window(slab, first, list(group)))
        first = windows[-1].rows.stop
    return tuple(windows)


def _view(
    masks: Made[int | None, Ahead[mx.array]],
    slab: int,
    num_slots: int,
    shortest: int,
    longest: int,
    num_later: int,
    sliding: int | None,
) -> View:
    mask = masks[sliding].at(num_later) if shortest < longest else None
    return View(slab, num_slots, _first(shortest + num_later, sliding), longest + num_later, mask)


def _first(shortest: int, sliding: int | None) -> int:
    """The first column that any row sees."""
    return 0 if sliding is None else max(0, shortest - sliding)


def _masks(lengths: Sequence[int], sliding: int | None) -> Ahead[mx.array]:
    """Which columns count, step by step, of slots of which so many columns are in use on the first one."""
    shortest, longest = min(lengths), max(lengths)
    at_first = np.array(lengths, dtype=np.int32)[:, None, None, None]  # (S, 1, 1, 1)

    def mask(step: int) -> mx.array:
        # Made by the host: a few thousand booleans, instead of kernels that make them.
        first, last, in_use = _first(shortest + step, sliding), longest + step, at_first + np.int32(step)
        seen = np.ones((len(lengths), 1, 1, last - first), dtype=np.bool_)
        own = shortest + step  # the first column that not all rows have
        seen[..., own - first :] = np.arange(own, last, dtype=np.int32) < in_use
        if sliding is not None and sliding < last:
            seen &= np.arange(first, last, dtype=np.int32) >= in_use - np.int32(sliding)
        return mx.array(seen)

    return Ahead(mask, most=_MAX_MASK_BYTES // (len(lengths) * longest))


def _mask_for(mask: mx.array | None, num_heads: int) -> mx.array | None:
    if mask is None or not is_fused() or 1 in (mask.shape[0], num_heads):
        return mask
    num_slots, _, _, width = mask.shape
    return mx.contiguous(mx.broadcast_to(mask, (num_slots, num_heads, 1, width)))
